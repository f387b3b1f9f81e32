//! A JSON number as a count, byte by byte: `12`, `12.0` and `1.2e1` are twelve.

use crate::llm::tokens::TOKENS_MAX;

/// Why what stands where a count should is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Odd {
    /// A text, a truth, a list, an object, or no JSON.
    NotANumber,
    /// Less than zero.
    Negative,
    /// Not whole.
    Fraction,
    /// More than [`TOKENS_MAX`], or added up to more.
    TooLarge,
    /// It does not stand there, and the others are nothing without it.
    Missing,
}

impl Odd {
    /// All of them.
    pub const ALL: [Odd; 5] =
        [Odd::NotANumber, Odd::Negative, Odd::Fraction, Odd::TooLarge, Odd::Missing];

    /// The name in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Odd::NotANumber => "count_not_a_number",
            Odd::Negative => "count_negative",
            Odd::Fraction => "count_fraction",
            Odd::TooLarge => "count_too_large",
            Odd::Missing => "count_missing",
        }
    }
}

/// The sum of counts, which is held to the same limit as each of them.
pub fn sum<const N: usize>(counts: [u64; N]) -> Result<u64, Odd> {
    let sum = counts.into_iter().fold(0, u64::saturating_add);
    if sum > TOKENS_MAX {
        return Err(Odd::TooLarge);
    }
    Ok(sum)
}

/// A larger exponent says no more than this one: what it is of is zero, or no count.
const EXPONENT_MAX: i32 = 1000;

/// A number of which some bytes were seen.
#[derive(Debug, Default, Clone, Copy)]
pub struct Number {
    /// The digits so far, less the zeros at their end.
    digits: u64,
    /// Those zeros.
    zeros: u16,
    /// Digits behind the point.
    places: u16,
    exponent: i16,
    step: Step,
    is_negative: bool,
    shrinks: bool,
    overflows: bool,
}

/// What was seen last (RFC 8259 section 6).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Step {
    #[default]
    Start,
    Minus,
    Zero,
    Digits,
    Point,
    Places,
    E,
    Sign,
    Exponent,
    Broken,
}

impl Number {
    /// The count that a text is, such as the value of a field of a head.
    pub fn read(text: &[u8]) -> Result<u64, Odd> {
        let mut number = Number::default();
        match text.iter().all(|byte| number.take(*byte)) {
            true => number.count(),
            false => Err(Odd::NotANumber),
        }
    }

    /// Sees the next byte; false when it is no part of a number.
    pub fn take(&mut self, byte: u8) -> bool {
        use Step::{Broken, Digits, Exponent, Minus, Places, Point, Sign, Start, Zero, E};
        self.step = match (self.step, byte) {
            (Start, b'-') => {
                self.is_negative = true;
                Minus
            }
            (Start | Minus, b'0') => Zero,
            (Start | Minus | Digits, b'0'..=b'9') => {
                self.digit(byte - b'0');
                Digits
            }
            (Zero | Digits, b'.') => Point,
            (Point | Places, b'0'..=b'9') => {
                self.digit(byte - b'0');
                self.places = self.places.saturating_add(1);
                Places
            }
            (Zero | Digits | Places, b'e' | b'E') => E,
            (E, b'+' | b'-') => {
                self.shrinks = byte == b'-';
                Sign
            }
            (E | Sign | Exponent, b'0'..=b'9') => {
                let exponent = i32::from(self.exponent) * 10 + i32::from(byte - b'0');
                self.exponent = exponent.min(EXPONENT_MAX) as i16;
                Exponent
            }
            (_, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E') => Broken,
            _ => return false,
        };
        true
    }

    fn digit(&mut self, digit: u8) {
        if digit == 0 {
            // Those before the first other digit say nothing.
            self.zeros = self.zeros.saturating_add(u16::from(self.digits > 0));
            return;
        }
        let scaled = scale(self.digits, u32::from(self.zeros) + 1);
        let sum = scaled.and_then(|scaled| scaled.checked_add(u64::from(digit)));
        self.overflows |= sum.is_none();
        self.digits = sum.unwrap_or(self.digits);
        self.zeros = 0;
    }

    /// The count, when all bytes were seen.
    pub fn count(&self) -> Result<u64, Odd> {
        let (whole, rest) = self.parts()?;
        if rest {
            return Err(Odd::Fraction);
        }
        Ok(whole)
    }

    /// The least count that is not less.
    pub fn rounded_up(&self) -> Result<u64, Odd> {
        let (whole, rest) = self.parts()?;
        Ok(whole + u64::from(rest))
    }

    /// What stands before the point, and whether anything stands behind it.
    fn parts(&self) -> Result<(u64, bool), Odd> {
        if !matches!(self.step, Step::Zero | Step::Digits | Step::Places | Step::Exponent) {
            return Err(Odd::NotANumber);
        }
        if self.is_negative {
            return Err(Odd::Negative);
        }
        let sign = if self.shrinks { -1 } else { 1 };
        let power =
            i32::from(self.zeros) - i32::from(self.places) + sign * i32::from(self.exponent);
        if self.digits == 0 {
            return Ok((0, false));
        }
        let (whole, rest) = match u32::try_from(power) {
            Ok(power) => (scale(self.digits, power).ok_or(Odd::TooLarge)?, false),
            Err(_) => match scale(1, power.unsigned_abs()) {
                Some(unit) => (self.digits / unit, !self.digits.is_multiple_of(unit)),
                None => (0, true),
            },
        };
        // Digits were left out: all that is known is that they were many.
        if self.overflows || whole > TOKENS_MAX {
            return Err(if power < 0 { Odd::Fraction } else { Odd::TooLarge });
        }
        Ok((whole, rest))
    }
}

fn scale(number: u64, power: u32) -> Option<u64> {
    10_u64.checked_pow(power).and_then(|unit| number.checked_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<u64, Odd> {
        let mut number = Number::default();
        assert!(text.bytes().all(|byte| number.take(byte)), "{text}");
        number.count()
    }

    /// Catches: a number that is billed as another, or not billed although it is one.
    #[test]
    fn each_way_to_write_a_count_is_read() {
        for (text, count) in [
            ("0", 0),
            ("7", 7),
            ("12", 12),
            ("100", 100),
            ("12.0", 12),
            ("1.5e1", 15),
            ("1.20E+1", 12),
            ("1e3", 1000),
            ("1500e-2", 15),
            ("0.0", 0),
            ("0e99999999999", 0),
            ("0.00012e5", 12),
            ("12.000000000000000000000000000000", 12),
            ("9007199254740992", TOKENS_MAX),
            ("10000000000000000000000000e-24", 10),
        ] {
            assert_eq!(read(text), Ok(count), "{text}");
        }
        for (text, odd) in [
            ("-1", Odd::Negative),
            ("-0", Odd::Negative),
            ("1.5", Odd::Fraction),
            ("15e-1", Odd::Fraction),
            ("1e-9999", Odd::Fraction),
            ("0.1234567890123456789012345", Odd::Fraction),
            ("9007199254740993", Odd::TooLarge),
            ("99999999999999999999999", Odd::TooLarge),
            ("1e99", Odd::TooLarge),
            ("1e999999999", Odd::TooLarge),
            ("007", Odd::NotANumber),
            ("1.", Odd::NotANumber),
            (".5", Odd::NotANumber),
            ("1e", Odd::NotANumber),
            ("1e+", Odd::NotANumber),
            ("-", Odd::NotANumber),
            ("+1", Odd::NotANumber),
            ("1-1", Odd::NotANumber),
        ] {
            assert_eq!(read(text), Err(odd), "{text}");
        }
        let mut seconds = Number::default();
        "36.2".bytes().for_each(|byte| assert!(seconds.take(byte)));
        assert_eq!(seconds.rounded_up(), Ok(37));
    }

    proptest! {
        /// Catches: any other difference to what a JSON parser reads. Of more than 15 digits a
        /// parser's floating point number may be another one.
        #[test]
        fn agrees_with_serde_json(
            text in "-?(0|[1-9][0-9]{0,8})(\\.[0-9]{1,6})?([eE][+-]?[0-9])?"
        ) {
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            let value = value.as_f64().unwrap();
            let whole = value.fract() == 0.0 && (0.0..=TOKENS_MAX as f64).contains(&value);
            let expected = (whole && !text.starts_with('-')).then_some(value as u64);
            prop_assert_eq!(read(&text).ok(), expected, "{}", text);
        }
    }
}
