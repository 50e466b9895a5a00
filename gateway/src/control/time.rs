//! Points in time as the control plane writes them down: milliseconds since the Unix epoch, shown as RFC 3339 in UTC
//! (`2026-11-21T02:10:04.120Z`). The pure parts of the control plane are handed one; they never ask a clock.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// The last millisecond of the year 9999: RFC 3339 has four digits for a year.
const LAST: u64 = 253_402_300_799_999;

impl Timestamp {
    /// Returns the wall clock's time.
    pub fn now() -> Self {
        // A clock before 1970 is a broken clock; the epoch is as good an answer as any.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self::from_millis(u64::try_from(since.as_millis()).unwrap_or(LAST))
    }

    /// Returns the time so many milliseconds after the epoch; nothing is later than the year 9999.
    pub const fn from_millis(millis: u64) -> Self {
        if millis > LAST { Self(LAST) } else { Self(millis) }
    }

    /// Returns the milliseconds since the epoch.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Returns the time as RFC 3339 writes it, in ASCII.
    pub fn rfc3339(self) -> [u8; 24] {
        let (year, month, day) = civil(self.0 / 86_400_000);
        let millis = self.0 % 86_400_000;
        let second = millis / 1000;
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let fields = [
            (0..4, year),
            (5..7, month),
            (8..10, day),
            (11..13, second / 3600),
            (14..16, second / 60 % 60),
            (17..19, second % 60),
            (20..23, millis % 1000),
        ];
        for (place, mut number) in fields {
            for digit in text[place].iter_mut().rev() {
                *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
                number /= 10;
            }
        }
        text
    }

    /// Returns the time as web servers' logs have it, in ASCII: `21/Nov/2026:02:10:04 +0000`.
    pub fn clf(self) -> [u8; 26] {
        const MONTHS: [&[u8; 3]; 12] =
            [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
        let rfc3339 = self.rfc3339();
        let (_, month, _) = civil(self.0 / 86_400_000);
        let mut text = *b"00/Jan/0000:00:00:00 +0000";
        text[..2].copy_from_slice(&rfc3339[8..10]);
        if let Some(month) = usize::try_from(month).ok().and_then(|month| MONTHS.get(month - 1)) {
            text[3..6].copy_from_slice(*month);
        }
        text[7..11].copy_from_slice(&rfc3339[..4]);
        text[12..20].copy_from_slice(&rfc3339[11..19]);
        text
    }

    /// Returns the time in a form that file names can hold: `20261121T021004Z`.
    pub fn compact(self) -> String {
        let (year, month, day) = civil(self.0 / 86_400_000);
        let second = self.0 / 1000 % 86_400;
        format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60)
    }
}

/// Returns year, month and day of so many days after the epoch, in the proleptic Gregorian calendar.
const fn civil(days: u64) -> (u64, u64, u64) {
    // The year is taken to begin in March, so that the leap day is its last one, and time to begin at 0000-03-01.
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// Returns the days from the epoch to a date, where the date exists and is not before it.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted_year = if month <= 2 { year.checked_sub(1)? } else { year };
    let era = shifted_year / 400;
    let year_of_era = shifted_year % 400;
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    let days = (era * 146_097 + of_era).checked_sub(719_468)?;
    // The 30th of February would come out as a day in March.
    (civil(days) == (year, month, day)).then_some(days)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.rfc3339()).unwrap_or_default())
    }
}

/// A text is not a time as [`Timestamp`] writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotATime;

impl fmt::Display for NotATime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a time like `2026-11-21T02:10:04.120Z`")
    }
}

impl std::error::Error for NotATime {}

impl FromStr for Timestamp {
    type Err = NotATime;

    /// Reads exactly what is written: UTC, and three digits of a second.
    fn from_str(text: &str) -> Result<Self, NotATime> {
        let bytes = text.as_bytes();
        let shape = b"0000-00-00T00:00:00.000Z";
        let fits = bytes.len() == shape.len()
            && bytes.iter().zip(shape).all(|(is, asked)| match asked {
                b'0' => is.is_ascii_digit(),
                other => is == other,
            });
        if !fits {
            return Err(NotATime);
        }
        let number = |from: usize, to: usize| text[from..to].parse::<u64>().map_err(|_| NotATime);
        let days = days(number(0, 4)?, number(5, 7)?, number(8, 10)?).ok_or(NotATime)?;
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if hour > 23 || minute > 59 || second > 59 {
            return Err(NotATime);
        }
        Ok(Self((days * 86_400 + hour * 3600 + minute * 60 + second) * 1000 + number(20, 23)?))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_227_004_120, "2026-11-21T02:10:04.120Z"),
            (LAST, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
        assert_eq!(Timestamp::from_millis(1_795_227_004_120).compact(), "20261121T021004Z");
        assert_eq!(Timestamp::from_millis(1_795_227_004_120).clf(), *b"21/Nov/2026:02:10:04 +0000");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "now",
            "2026-02-30T00:00:00.000Z",
            "2026-13-01T00:00:00.000Z",
            "2026-11-21T24:00:00.000Z",
            "1969-12-31T00:00:00.000Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(NotATime), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(millis in 0..=LAST) {
            let time = Timestamp::from_millis(millis);
            prop_assert_eq!(time.to_string().parse::<Timestamp>(), Ok(time));
        }
    }
}
