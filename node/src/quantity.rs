//! Quantities (`100m`, `64Mi`, `1e3`) as exact numbers, with the bounds of the API server.
//!
//! Absent: writing them back in canonical form, and which resource a number is of.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// An amount of something, in thousand-millionths (nano), rounded up where the text is finer; at most 2^63 - 1 whole units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(i128);

const NANO: i128 = 1_000_000_000;

/// It is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuantity {
    /// The text has not the form of a quantity.
    #[error(
        "{0:?} is no quantity; write a number with at most one of m, k, M, G, Ki, Mi, Gi, …, e.g. 500m or 64Mi"
    )]
    Malformed(String),
    /// It is below zero.
    #[error("{0:?} is below zero")]
    Negative(String),
    /// It is beyond 2^63 - 1.
    #[error("{0:?} is too large; the largest quantity is 9223372036854775807")]
    TooLarge(String),
}

impl Amount {
    /// So many whole units.
    pub const fn units(units: u64) -> Self {
        Self(units as i128 * NANO)
    }

    /// So many thousandths.
    pub const fn millis(millis: u64) -> Self {
        Self(millis as i128 * (NANO / 1000))
    }

    /// Reads a quantity that is not below zero.
    pub fn parse(quantity: &Quantity) -> Result<Self, BadQuantity> {
        let text = quantity.0.as_str();
        let malformed = || BadQuantity::Malformed(text.chars().take(64).collect());
        let too_large = || BadQuantity::TooLarge(text.chars().take(64).collect());
        // Longer than any number that matters; an API server's own texts are at most 30 or so.
        if text.len() > 128 {
            return Err(malformed());
        }
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(malformed());
        }
        let (binary, decimal) = scale(suffix).ok_or_else(malformed)?;
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return Ok(Self(0));
        }
        if negative {
            return Err(BadQuantity::Negative(text.to_owned()));
        }
        // value = digits × 10^(decimal - fraction) × 2^binary, in nano: 9 more.
        let fraction_digits = i64::try_from(fraction.len()).map_err(|_| malformed())?;
        let exponent = decimal.saturating_sub(fraction_digits).saturating_add(9);
        // At most 38 digits fit an i128: drop what is finer than nano first, rounding up.
        let (digits, exponent, mut inexact) = drop_fine(digits, exponent);
        if digits.len() > 30 || exponent > 30 {
            return Err(too_large());
        }
        let mut value: i128 =
            if digits.is_empty() { 0 } else { digits.parse().map_err(|_| malformed())? };
        let ten = 10_i128.pow(exponent.unsigned_abs() as u32);
        if exponent >= 0 {
            value = value.checked_mul(ten).ok_or_else(too_large)?;
            value = value.checked_mul(1 << binary).ok_or_else(too_large)?;
        } else {
            let scaled = value.checked_mul(1 << binary).ok_or_else(too_large)?;
            value = scaled / ten;
            inexact |= scaled % ten != 0;
        }
        value += i128::from(inexact);
        if value > i128::from(i64::MAX) * NANO {
            return Err(too_large());
        }
        Ok(Self(value))
    }

    /// In whole units, rounded up.
    pub fn ceil(self) -> u64 {
        self.div_ceil(Self::units(1))
    }

    /// In thousandths, rounded up.
    pub fn ceil_millis(self) -> u64 {
        self.div_ceil(Self::millis(1))
    }

    /// How many of `divisor` it is, rounded up; a divisor of zero counts as one unit.
    pub fn div_ceil(self, divisor: Self) -> u64 {
        let divisor = if divisor.0 == 0 { NANO } else { divisor.0 };
        u64::try_from((self.0 + divisor - 1) / divisor).unwrap_or(u64::MAX)
    }

    /// It is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.0 % NANO == 0
    }
}

/// A suffix as powers of 2 and of 10.
fn scale(suffix: &str) -> Option<(u32, i64)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            // An exponent of four digits is beyond every bound in either direction.
            let size: i64 = digits
                .trim_start_matches('0')
                .parse()
                .unwrap_or(if digits.contains(|c| c != '0') { 9999 } else { 0 });
            (0, if exponent.starts_with('-') { -size } else { size })
        }
    })
}

/// Takes digits away that stand for less than 10^-9 of the result's unit even after a suffix of 2^60 (under 10^19).
fn drop_fine(digits: &str, exponent: i64) -> (&str, i64, bool) {
    let excess = usize::try_from((-exponent).saturating_sub(20)).unwrap_or(0);
    if excess == 0 {
        return (digits, exponent, false);
    }
    let kept = digits.len().saturating_sub(excess);
    (&digits[..kept], -20, digits[kept..].contains(|c| c != '0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Amount, BadQuantity> {
        Amount::parse(&Quantity(text.to_owned()))
    }

    #[test]
    fn quantities_are_read_as_the_api_server_reads_them() {
        for (text, millis) in [
            ("0", 0),
            ("1", 1000),
            ("+1", 1000),
            ("100m", 100),
            ("0.1", 100),
            (".5", 500),
            ("1.", 1000),
            ("1e3", 1_000_000),
            ("1E-3", 1),
            ("2k", 2_000_000),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("0.5Ki", 512_000),
            ("1n", 1),
            ("0.1m", 1),
            ("-0", 0),
            ("0e99999999999999999999", 0),
        ] {
            assert_eq!(parse(text).map(Amount::ceil_millis), Ok(millis), "{text}");
        }
        assert_eq!(parse("8E").map(Amount::ceil), Ok(8_000_000_000_000_000_000));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", ".", "m", "1Kb", "1 Mi", "1e", "1e+", "0x10", "1.2.3", "NaN", "1mi", "٣"]
        {
            assert!(matches!(parse(text), Err(BadQuantity::Malformed(_))), "{text}");
        }
        assert!(matches!(parse(&"1".repeat(1000)), Err(BadQuantity::Malformed(_))));
    }

    #[test]
    fn no_quantity_is_negative_or_beyond_63_bits() {
        assert!(matches!(parse("-1"), Err(BadQuantity::Negative(_))));
        for text in ["1e308", "9.3E", "9Ei", "1e99999999999999999999", &"9".repeat(100)] {
            assert!(matches!(parse(text), Err(BadQuantity::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn the_tiniest_amounts_count_as_one_nano() {
        for text in ["1e-308", "1e-99999999999999999999", "0.0000000000000000000000000000000001"] {
            assert_eq!(parse(text), Ok(Amount(1)), "{text}");
        }
    }

    #[test]
    fn a_division_rounds_up() {
        assert_eq!(Amount::millis(1500).div_ceil(Amount::units(1)), 2);
        assert_eq!(Amount::millis(1500).div_ceil(Amount::millis(1)), 1500);
        assert_eq!(Amount::units(65).div_ceil(Amount::units(64)), 2);
        assert_eq!(Amount::units(3).div_ceil(Amount::default()), 3);
    }
}
