//! Whether a text is a quantity as Kubernetes writes them. Its value is the pod core's concern, not ours.

/// `500m`, `64Mi`, `1.5`, `1e3`: a signed decimal number with at most one suffix.
pub(crate) fn is_quantity(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let number_is_good = number.bytes().any(|b| b.is_ascii_digit())
        && number.bytes().filter(|b| *b == b'.').count() <= 1;
    number_is_good && is_suffix(suffix)
}

fn is_suffix(suffix: &str) -> bool {
    match suffix {
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" => true,
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => true,
        exponent => {
            let Some(digits) = exponent.strip_prefix(['e', 'E']) else { return false };
            let digits = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_told_from_other_texts() {
        for good in ["1", "0.5", ".5", "5.", "500m", "64Mi", "1G", "1e3", "2E-3", "+1k", "12E"] {
            assert!(is_quantity(good), "{good}");
        }
        for bad in ["", "m", "64 Mi", "64MB", "64mi", "1.2.3", "0x10", "1e", "half", "-", "1K"] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }
}
