//! When an authority wants a certificate renewed (RFC 9773): before we would, where it is about to
//! revoke it, say, or has too much to do when everybody else comes.

use super::pair::CertificateLife;
use super::pause::Jitter;
use super::web::AcmeWeb;
use crate::base::certificate::issuer_and_serial;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use std::time::Duration;

/// So long it is not asked again, unless the authority says another time.
const ADVICE_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// Within these it may say one.
const ADVICE_PAUSE_MIN: Duration = Duration::from_secs(60);
pub const ADVICE_PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);
/// It is asked so often within a life at least, and not before the first such part of it is over:
/// one that wants each certificate renewed at once would get order after order.
const ADVICES_PER_LIFE: u64 = 20;

/// What an authority says of one certificate.
#[derive(Debug, PartialEq, Eq)]
pub struct RenewalAdvice {
    /// When it is to be renewed, in milliseconds since 1970: within the time that it says.
    pub renewal_ms: u64,
    /// A page that says why.
    pub explanation: Option<String>,
    /// So long it wants to hear nothing more of it.
    pub pause: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    renewal_info: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RenewalInfo {
    suggested_window: Window,
    #[serde(rename = "explanationURL")]
    explanation: Option<String>,
}

#[derive(Deserialize)]
struct Window {
    start: String,
    end: String,
}

/// Asks an authority. Blocks. `None`: it gives no advice, or none on such a certificate.
///
/// # Errors
/// It was not reached, or says what cannot be understood: why.
pub fn ask(
    web: &AcmeWeb,
    directory: &str,
    certificate: &CertificateDer<'_>,
    jitter: Jitter,
) -> Result<Option<RenewalAdvice>, String> {
    let Some(mark) = mark(certificate) else { return Ok(None) };
    let page: Directory = read(&web.get(directory)?)?;
    let Some(place) = page.renewal_info.filter(|place| place.starts_with("https://")) else {
        return Ok(None);
    };
    let info = web.get(&format!("{}/{mark}", place.trim_end_matches('/')))?;
    advice(&info, web.retry_after(), jitter).map(Some)
}

fn advice(info: &[u8], asked: Option<Duration>, jitter: Jitter) -> Result<RenewalAdvice, String> {
    let RenewalInfo { suggested_window: Window { start, end }, explanation } = read(info)?;
    let moment = |text: &str| match text.parse::<jiff::Timestamp>() {
        Ok(at) => Ok(u64::try_from(at.as_millisecond()).unwrap_or_default()),
        Err(error) => Err(error.to_string()),
    };
    let (start, end) = (moment(&start)?, moment(&end)?);
    if end < start {
        return Err("its window ends before it begins".into());
    }
    let renewal_ms = start + jitter.of(end - start);
    let pause = asked.unwrap_or(ADVICE_PAUSE).clamp(ADVICE_PAUSE_MIN, ADVICE_PAUSE_MAX);
    Ok(RenewalAdvice { renewal_ms, explanation, pause })
}

/// So often a certificate that lives so long is asked about.
pub fn pause_of(lifetime: CertificateLife) -> Duration {
    Duration::from_secs((lifetime.seconds() / ADVICES_PER_LIFE).max(1)).min(ADVICE_PAUSE_MAX)
}

/// What a certificate is called there (RFC 9773 section 4.1).
fn mark(certificate: &CertificateDer<'_>) -> Option<String> {
    let (issuer, serial) = issuer_and_serial(certificate)?;
    Some(format!("{}.{}", URL_SAFE_NO_PAD.encode(issuer), URL_SAFE_NO_PAD.encode(serial)))
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;

    /// Of RFC 9773, appendix A.
    const EXAMPLE: &str = "-----BEGIN CERTIFICATE-----
MIIBQzCB66ADAgECAgUAh2VDITAKBggqhkjOPQQDAjAVMRMwEQYDVQQDEwpFeGFt
cGxlIENBMCIYDzAwMDEwMTAxMDAwMDAwWhgPMDAwMTAxMDEwMDAwMDBaMBYxFDAS
BgNVBAMTC2V4YW1wbGUuY29tMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEeBZu
7cbpAYNXZLbbh8rNIzuOoqOOtmxA1v7cRm//AwyMwWxyHz4zfwmBhcSrf47NUAFf
qzLQ2PPQxdTXREYEnKMjMCEwHwYDVR0jBBgwFoAUaYhba4dGQEHhs3uEe6CuLN4B
yNQwCgYIKoZIzj0EAwIDRwAwRAIge09+S5TZAlw5tgtiVvuERV6cT4mfutXIlwTb
+FYN/8oCIClDsqBklhB9KAelFiYt9+6FDj3z4KGVelYM5MdsO3pK
-----END CERTIFICATE-----
";

    /// Catches: an authority that is asked about another certificate than the one in use.
    #[test]
    fn a_certificate_is_called_as_the_standard_says() {
        let certificate = CertificateDer::from_pem_slice(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(mark(&certificate).unwrap(), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE");
        // Who signed itself names no other key.
        assert_eq!(mark(&CertificateDer::from(vec![0x30, 0x00])), None);
    }

    /// Catches: a moment outside of the window, a pause that an authority can make endless or
    /// shorter than anybody can bear, advice that means nothing and is heeded.
    #[test]
    fn a_moment_of_the_window_is_taken() {
        let window = |start: &str, end: &str| {
            format!(r#"{{"suggestedWindow":{{"start":"{start}","end":"{end}"}},"more":1}}"#)
        };
        let day = window("1970-01-02T00:00:00Z", "1970-01-03T00:00:00Z");
        let at = |jitter, asked| advice(day.as_bytes(), asked, Jitter(jitter)).unwrap();
        assert_eq!(at(0, None).renewal_ms, 86_400_000);
        assert_eq!((at(255, None).renewal_ms, at(255, None).pause), (172_800_000, ADVICE_PAUSE));
        assert_eq!(at(0, Some(Duration::ZERO)).pause, ADVICE_PAUSE_MIN);
        assert_eq!(at(0, Some(Duration::MAX)).pause, ADVICE_PAUSE_MAX);
        let past = window("1969-01-02T00:00:00Z", "1969-01-03T00:00:00Z");
        assert_eq!(advice(past.as_bytes(), None, Jitter(9)).unwrap().renewal_ms, 0);
        let turned = window("1970-01-03T00:00:00Z", "1970-01-02T00:00:00Z");
        for bad in [turned.as_str(), &window("soon", "later"), "{}", ""] {
            assert!(advice(bad.as_bytes(), None, Jitter(0)).is_err(), "{bad}");
        }
        let quarter = CertificateLife { from_s: 0, until_s: 90 * 24 * 3600 };
        assert_eq!(pause_of(quarter), ADVICE_PAUSE_MAX);
        assert_eq!(pause_of(CertificateLife { from_s: 0, until_s: 200 }).as_secs(), 10);
    }
}
