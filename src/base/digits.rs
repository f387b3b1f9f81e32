//! Whole numbers as decimal digits, without the formatting machinery: heads, chunks and records are
//! written at the rate of requests.

/// Digits of 2^64 - 1.
const DIGITS_MAX: usize = 20;

/// A number in decimal.
#[derive(Debug, Clone, Copy)]
pub struct Digits {
    /// The digits stand at the end.
    bytes: [u8; DIGITS_MAX],
    first: usize,
}

impl Digits {
    /// Of a number.
    pub fn of(value: u64) -> Digits {
        let mut bytes = [0; DIGITS_MAX];
        let mut rest = value;
        let mut first = DIGITS_MAX;
        for slot in bytes.iter_mut().rev() {
            *slot = b'0' + (rest % 10) as u8;
            rest /= 10;
            first -= 1;
            if rest == 0 {
                break;
            }
        }
        Digits { bytes, first }
    }

    /// As bytes, one at least.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.first..).unwrap_or_default()
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// Appends `value` in decimal.
pub fn push_decimal(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(Digits::of(value).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_standard_library() {
        let values = [0, 1, 9, 10, 15, 16, 99, 100, 255, 256, 4095, 65_536, u64::MAX - 1, u64::MAX];
        for value in values {
            let mut out = Vec::new();
            push_decimal(&mut out, value);
            assert_eq!(out, value.to_string().as_bytes());
            assert_eq!(Digits::of(value).as_str(), value.to_string());
        }
    }
}
