//! Times as Docker's listings show them.

use rvm_engine::record::now_ms;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// How long ago a moment was, given in milliseconds since the epoch: `2 hours ago`.
pub(crate) fn ago(moment_ms: u64) -> String {
    format!("{} ago", since(moment_ms))
}

/// How long ago a moment was, without `ago`.
pub(crate) fn since(moment_ms: u64) -> String {
    span(now_ms().saturating_sub(moment_ms) / 1000)
}

/// [`ago`] for a date and time as an image's configuration has it; the text itself where it is none.
pub(crate) fn ago_rfc3339(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(moment) => ago(u64::try_from(moment.as_millisecond()).unwrap_or(0)),
        Err(_) => text.to_owned(),
    }
}

/// Milliseconds since the epoch of a moment, a date, or so long ago as a span says: `2026-01-31T12:00:00Z`, `2026-01-31`,
/// `36h`, `1h30m`. A date alone is its beginning in UTC.
pub(crate) fn moment(text: &str) -> Option<u64> {
    let date = || {
        text.parse::<jiff::civil::Date>()
            .ok()?
            .to_zoned(jiff::tz::TimeZone::UTC)
            .ok()
    };
    let ago = || {
        let span: jiff::SignedDuration = text.parse().ok()?;
        jiff::Timestamp::now().checked_sub(span).ok()
    };
    let moment = text.parse::<jiff::Timestamp>().ok();
    let moment = moment.or_else(|| Some(date()?.timestamp())).or_else(ago)?;
    u64::try_from(moment.as_millisecond()).ok()
}

/// A moment in milliseconds since the epoch as RFC 3339 has it, with nine digits of the second.
pub(crate) fn nanoseconds(moment_ms: u64) -> String {
    let moment = i64::try_from(moment_ms).ok();
    let moment = moment.and_then(|moment| jiff::Timestamp::from_millisecond(moment).ok());
    format!("{:.9}", moment.unwrap_or(jiff::Timestamp::MAX))
}

/// A moment in nanoseconds since the epoch as RFC 3339 has it.
pub(crate) fn moment_of_nanoseconds(moment: i64) -> String {
    let moment = jiff::Timestamp::from_nanosecond(moment.into());
    format!("{:.9}", moment.unwrap_or(jiff::Timestamp::MAX))
}

/// The present as documents of images have it.
pub(crate) fn now_rfc3339() -> String {
    jiff::Timestamp::now().to_string()
}

fn span(seconds: u64) -> String {
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        _ if seconds < MINUTE => format!("{seconds} seconds"),
        _ if seconds < 2 * MINUTE => "About a minute".to_owned(),
        _ if seconds < HOUR => format!("{} minutes", seconds / MINUTE),
        _ if seconds < 2 * HOUR => "About an hour".to_owned(),
        _ if seconds < 2 * DAY => format!("{} hours", seconds / HOUR),
        _ if seconds < 14 * DAY => format!("{} days", seconds / DAY),
        _ if seconds < 60 * DAY => format!("{} weeks", seconds / DAY / 7),
        _ if seconds < 730 * DAY => format!("{} months", seconds / DAY / 30),
        _ => format!("{} years", seconds / DAY / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_rounded_as_people_speak() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (7199, "About an hour"),
            (7200, "2 hours"),
            (3 * DAY, "3 days"),
            (21 * DAY, "3 weeks"),
            (61 * DAY, "2 months"),
            (800 * DAY, "2 years"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn moments_are_dates_or_spans() {
        assert_eq!(moment("1970-01-01T00:00:01.5Z"), Some(1500));
        assert_eq!(moment("1970-01-02"), Some(86_400_000));
        let hour_ago = now_ms() - 3_600_000;
        let found = moment("1h").unwrap();
        assert!(found.abs_diff(hour_ago) < 60_000, "{found} {hour_ago}");
        assert_eq!(moment("yesterday"), None);
    }

    #[test]
    fn dates_of_images_are_understood() {
        assert!(ago_rfc3339("2020-01-01T00:00:00.123456789Z").ends_with("years ago"));
        assert_eq!(ago_rfc3339("yesterday"), "yesterday");
    }
}
