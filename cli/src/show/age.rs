//! Spans of time and moments, as kubectl writes them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// How long ago `then` was: `5s`, `2m30s`, `3h`, `2d4h`; a future moment is now.
pub(crate) fn since(then: Timestamp, now: Timestamp) -> String {
    span(now.as_second().saturating_sub(then.as_second()).max(0))
}

/// As [`since`], or `<unknown>`.
pub(crate) fn since_time(then: Option<&Time>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".to_owned(), |then| since(then.0, now))
}

/// `seconds` in at most two units, fewer the longer it is: kubectl's steps.
fn span(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |large: i64, unit: &str, small: i64, of: &str| match (seconds % large) / small {
        0 => format!("{}{unit}", seconds / large),
        rest => format!("{}{unit}{rest}{of}", seconds / large),
    };
    match seconds {
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(MINUTE, "m", 1, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(HOUR, "h", MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(DAY, "d", HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(YEAR, "y", DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

/// A moment as `kubectl describe` writes it, in UTC.
pub(crate) fn moment(time: &Time) -> String {
    time.0.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lose_precision_as_they_grow() {
        let table = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_060, "3h21m"),
            (30_000, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (700_000, "8d"),
            (70_000_000, "2y80d"),
            (300_000_000, "9y"),
        ];
        for (seconds, expected) in table {
            assert_eq!(span(seconds), expected, "{seconds}");
        }
    }
}
