//! Whole numbers as decimal digits, without the formatting machinery: heads, chunks and records are
//! written at the rate of requests.

/// Digits of 2^64 - 1.
const DIGITS_MAX: usize = 20;

/// All pairs of digits, in order.
static PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

/// The last two digits of a number, with a zero where there is but one.
pub fn pair(number: u64) -> [u8; 2] {
    PAIRS[(number % 100) as usize]
}

/// Appends `value` in decimal.
pub fn push_decimal(out: &mut Vec<u8>, value: u64) {
    match value {
        // Most numbers are short.
        0..10 => out.push(b'0' + value as u8),
        10..100 => out.extend_from_slice(&pair(value)),
        100..1000 => {
            let [last, first] = [pair(value), pair(value / 100)];
            out.extend_from_slice(&[first[1], last[0], last[1]]);
        }
        1000..10_000 => {
            let [last, first] = [pair(value), pair(value / 100)];
            out.extend_from_slice(&[first[0], first[1], last[0], last[1]]);
        }
        10_000.. => push_long(out, value),
    }
}

fn push_long(out: &mut Vec<u8>, value: u64) {
    let mut digits = [0; DIGITS_MAX];
    let mut rest = value;
    let mut used = 0;
    for slots in digits.rchunks_exact_mut(2) {
        slots.copy_from_slice(&pair(rest));
        rest /= 100;
        used += 2;
        if rest == 0 {
            break;
        }
    }
    let digits = digits.get(DIGITS_MAX - used..).unwrap_or_default();
    out.extend_from_slice(digits.strip_prefix(b"0").unwrap_or(digits));
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
            assert_eq!(pair(value), format!("{:02}", value % 100).as_bytes());
        }
    }
}
