//! Names of fields that the proxy treats specially, recognised once, when a head is parsed.

/// A field name that the proxy treats specially.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Known {
    /// Any other field.
    #[default]
    Other,
    /// A name with `_`. WSGI-style servers merge `_` and `-`, so it could pass for another field.
    Underscored,
    /// A name that a lenient reader could take for Content-Length or Transfer-Encoding.
    FramingLookAlike,
    /// Host
    Host,
    /// Content-Length
    ContentLength,
    /// Transfer-Encoding
    TransferEncoding,
    /// Connection
    Connection,
    /// Keep-Alive, Proxy-Connection, TE, Trailer, Upgrade, Proxy-Authenticate or
    /// Proxy-Authorization: the rest of what ends at each hop.
    HopByHop,
    /// Expect
    Expect,
    /// Authorization
    Authorization,
    /// Cookie
    Cookie,
    /// Content-Type
    ContentType,
    /// Content-Encoding, or SGLang's `x-body-compressed`, which says the same of a request.
    ContentEncoding,
    /// Retry-After
    RetryAfter,
    /// Location or Content-Location
    Location,
    /// Via
    Via,
    /// x-request-id
    XRequestId,
    /// X-Forwarded-For
    XForwardedFor,
    /// X-Forwarded-Proto
    XForwardedProto,
    /// Forwarded, X-Real-IP, or any other X-Forwarded-*: the rest of what a peer says about where
    /// the request came from.
    Origin,
}

impl Known {
    /// Which field a name is. The length decides first, so most names cost one comparison.
    pub fn of(name: &[u8]) -> Known {
        let found = match name.len() {
            2 if is(name, b"te") => Known::HopByHop,
            3 if is(name, b"via") => Known::Via,
            4 if is(name, b"host") => Known::Host,
            6 if is(name, b"cookie") => Known::Cookie,
            6 if is(name, b"expect") => Known::Expect,
            7 if is(name, b"trailer") || is(name, b"upgrade") => Known::HopByHop,
            8 if is(name, b"location") => Known::Location,
            9 if is(name, b"forwarded") || is(name, b"x-real-ip") => Known::Origin,
            10 if is(name, b"connection") => Known::Connection,
            10 if is(name, b"keep-alive") => Known::HopByHop,
            11 if is(name, b"retry-after") => Known::RetryAfter,
            12 if is(name, b"content-type") => Known::ContentType,
            12 if is(name, b"x-request-id") => Known::XRequestId,
            13 if is(name, b"authorization") => Known::Authorization,
            14 if is(name, b"content-length") => Known::ContentLength,
            15 if is(name, b"x-forwarded-for") => Known::XForwardedFor,
            16 if is(name, b"content-encoding") => Known::ContentEncoding,
            16 if is(name, b"content-location") => Known::Location,
            16 if is(name, b"proxy-connection") => Known::HopByHop,
            17 if is(name, b"x-body-compressed") => Known::ContentEncoding,
            17 if is(name, b"transfer-encoding") => Known::TransferEncoding,
            17 if is(name, b"x-forwarded-proto") => Known::XForwardedProto,
            18 if is(name, b"proxy-authenticate") => Known::HopByHop,
            19 if is(name, b"proxy-authorization") => Known::HopByHop,
            _ => Known::Other,
        };
        if found == Known::Other {
            Known::of_odd(name)
        } else {
            found
        }
    }

    /// The kinds that no single name tells.
    fn of_odd(name: &[u8]) -> Known {
        const ORIGIN: &[u8] = b"x-forwarded-";
        // The length and a letter decide first: most names are neither long nor begin like these.
        if name.len() >= ORIGIN.len() {
            if name.get(..ORIGIN.len()).is_some_and(|p| p.eq_ignore_ascii_case(ORIGIN)) {
                return Known::Origin;
            }
            if resembles(name, b"contentlength") || resembles(name, b"transferencoding") {
                return Known::FramingLookAlike;
            }
        }
        if name.iter().fold(false, |any, b| any | (*b == b'_')) {
            return Known::Underscored;
        }
        Known::Other
    }

    /// True for fields that end at this hop: they are ours to read and ours to write anew
    /// (RFC 9110 §7.6.1; Expect because we answer it ourselves).
    pub(super) fn stays(self) -> bool {
        matches!(
            self,
            Known::Host
                | Known::ContentLength
                | Known::TransferEncoding
                | Known::Connection
                | Known::HopByHop
                | Known::Expect
        )
    }

    /// True for fields whose removal by a peer's Connection field would change policy.
    pub(super) fn is_protected(self) -> bool {
        matches!(
            self,
            Known::Host
                | Known::ContentLength
                | Known::Authorization
                | Known::Cookie
                | Known::XRequestId
                | Known::XForwardedFor
                | Known::XForwardedProto
                | Known::Origin
        )
    }
}

/// True when `name` is this one, in any case. The length is known, so that this is a few
/// instructions on words; `lower` must have letters and hyphens only, which no byte of another
/// name becomes.
fn is<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let mut differs = 0;
    for (byte, lower) in name.iter().zip(lower) {
        differs |= (byte | 0x20) ^ lower;
    }
    differs == 0
}

/// True when the letters and digits of `name` are those of `plain`, whatever stands between them.
fn resembles(name: &[u8], plain: &[u8]) -> bool {
    // Three of four names differ at once.
    let starts = name.iter().find(|b| b.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase);
    starts.as_ref() == plain.first()
        && name.len() >= plain.len()
        && name
            .iter()
            .filter(|b| b.is_ascii_alphanumeric())
            .map(u8::to_ascii_lowercase)
            .eq(plain.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that is not recognised would be forwarded, or its rule not applied.
    #[test]
    fn every_special_name_is_recognised_in_any_case() {
        let names = [
            ("Host", Known::Host),
            ("content-LENGTH", Known::ContentLength),
            ("TRANSFER-ENCODING", Known::TransferEncoding),
            ("Connection", Known::Connection),
            ("Keep-Alive", Known::HopByHop),
            ("Proxy-Connection", Known::HopByHop),
            ("TE", Known::HopByHop),
            ("Trailer", Known::HopByHop),
            ("Upgrade", Known::HopByHop),
            ("Proxy-Authenticate", Known::HopByHop),
            ("Proxy-Authorization", Known::HopByHop),
            ("Expect", Known::Expect),
            ("authorization", Known::Authorization),
            ("Cookie", Known::Cookie),
            ("Content-Type", Known::ContentType),
            ("Content-Encoding", Known::ContentEncoding),
            ("X-Body-Compressed", Known::ContentEncoding),
            ("Retry-After", Known::RetryAfter),
            ("location", Known::Location),
            ("Content-Location", Known::Location),
            ("User-Agent", Known::Other),
            ("X-Request-ID", Known::XRequestId),
            ("X-Forwarded-For", Known::XForwardedFor),
            ("X-Forwarded-Proto", Known::XForwardedProto),
            ("X-Forwarded-Client-Cert", Known::Origin),
            ("x-forwarded-host", Known::Origin),
            ("Forwarded", Known::Origin),
            ("X-Real-IP", Known::Origin),
            ("X_Custom", Known::Underscored),
            ("Content_Length", Known::FramingLookAlike),
            ("Transfer---Encoding", Known::FramingLookAlike),
            ("TransferEncoding", Known::FramingLookAlike),
            ("X-Content-Length", Known::Other),
            ("Accept", Known::Other),
            ("traceparent", Known::Other),
        ];
        for (name, known) in names {
            assert_eq!(Known::of(name.as_bytes()), known, "{name}");
        }
    }
}
