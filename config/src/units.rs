//! Quantities as people write them (`5ms`, `16MiB`, `5%`), parsed once and typed from there on.
//!
//! A quantity always carries its unit: of `timeout: 5` nobody can tell whether it means seconds or milliseconds, so it is
//! refused, with the spelling that was probably meant. Only plain bytes may go without.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::text::TextError;

/// A canary's share: 0 to 100 % in steps of 0.01.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    /// Nobody.
    pub const ZERO: Self = Self(0);
    /// Everybody: 10,000 basis points.
    pub const FULL: Self = Self(10_000);

    /// Returns a weight of so many hundredths of a per cent; none above 10,000.
    #[must_use]
    pub const fn from_basis_points(points: u16) -> Option<Self> {
        if points <= 10_000 { Some(Self(points)) } else { None }
    }

    /// Returns the hundredths of a per cent, 0 to 10,000.
    #[must_use]
    pub const fn basis_points(self) -> u16 {
        self.0
    }
}

/// The shortest text that parses back to the same weight: `5%`, `12.5%`, `0.01%`.
impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, hundredths) = (self.0 / 100, self.0 % 100);
        match hundredths {
            0 => write!(f, "{whole}%"),
            tenths if tenths % 10 == 0 => write!(f, "{whole}.{}%", tenths / 10),
            _ => write!(f, "{whole}.{hundredths:02}%"),
        }
    }
}

/// `5%`, `12.5%`, `0.01%`.
///
/// # Errors
///
/// A text without `%`, finer than 0.01 %, or outside 0 to 100 %.
impl FromStr for Weight {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        per_cent("weight", text).map(Self)
    }
}

/// Reads hundredths of a per cent, 0 to 10,000.
fn per_cent(kind: &str, text: &str) -> Result<u16, TextError> {
    let expected = || TextError::new(format!("a {kind} such as `5%`, from 0% to 100% in steps of 0.01%"));
    let text = text.trim();
    let Some(number) = text.strip_suffix('%') else {
        return Err(match exact(text, 100) {
            Scaled::Not => expected(),
            _ => expected().hint(format!("a {kind} is written in per cent: `{text}%`")),
        });
    };
    match exact(number.trim_end(), 100) {
        Scaled::Exact(points) => u16::try_from(points).ok().filter(|points| *points <= 10_000).ok_or_else(expected),
        Scaled::Finer => Err(expected().hint("the smallest step is 0.01%")),
        Scaled::Not => Err(expected()),
    }
}

/// As text, with its unit.
impl Serialize for Weight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A share of something: 0 to 100 % in steps of 0.01. Tolerances, quantiles and budgets are shares; whom a canary serves
/// is a [`Weight`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u16);

impl Share {
    /// Nothing of it.
    pub const ZERO: Self = Self(0);
    /// All of it.
    pub const FULL: Self = Self(10_000);

    /// Returns a share of so many hundredths of a per cent; none above 10,000.
    #[must_use]
    pub const fn from_basis_points(points: u16) -> Option<Self> {
        if points <= 10_000 { Some(Self(points)) } else { None }
    }

    /// Returns the hundredths of a per cent, 0 to 10,000.
    #[must_use]
    pub const fn basis_points(self) -> u16 {
        self.0
    }

    /// Returns the share as a number from 0 to 1.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

/// The shortest text that parses back to the same share: `5%`, `99.9%`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Weight(self.0).fmt(f)
    }
}

/// `5%`, `99.9%`, `0.01%`.
///
/// # Errors
///
/// A text without `%`, finer than 0.01 %, or outside 0 to 100 %.
impl FromStr for Share {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        per_cent("share", text).map(Self)
    }
}

/// As text, with its unit.
impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Returns a size of so many KiB.
    #[must_use]
    pub const fn kib(count: u32) -> Self {
        Self((count as u64) << 10)
    }

    /// Returns a size of so many MiB.
    #[must_use]
    pub const fn mib(count: u32) -> Self {
        Self((count as u64) << 20)
    }

    /// Returns a size of so many GiB.
    #[must_use]
    pub const fn gib(count: u32) -> Self {
        Self((count as u64) << 30)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Units of sizes, the larger first; of two that both fit, the first is shown.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// The largest unit that leaves no fraction: `16MiB`, `1MB`, `1023B`.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) =
            SIZES.into_iter().find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale)).unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

/// `16MiB`, `64KiB`, `1MB`, `1.5GiB`, or plain bytes.
///
/// # Errors
///
/// An unknown unit, a fraction of a byte, or more than fits.
impl FromStr for ByteSize {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let expected = || TextError::new("a size such as `16MiB`, `64KiB`, `1MB` or `4096`");
        let (number, unit) = split_unit(text);
        let scale = match unit {
            "" => 1,
            "KB" => 1_000,
            _ => match SIZES.iter().find(|(name, _)| *name == unit) {
                Some((_, scale)) => *scale,
                None => {
                    let guess = SIZES.iter().find(|(name, _)| same_unit(name, unit)).map(|(name, _)| *name);
                    return Err(match guess {
                        Some(name) => expected().hint(format!("write `{number}{name}`")),
                        None => expected(),
                    });
                }
            },
        };
        match exact(number, scale.into()) {
            Scaled::Exact(bytes) => u64::try_from(bytes).map(Self).map_err(|_| expected()),
            Scaled::Finer => Err(expected().hint("there are no fractions of a byte")),
            Scaled::Not => Err(expected()),
        }
    }
}

/// Tells `16M`, `16Mi` and `16mib`, other tools' spellings, from nonsense.
fn same_unit(name: &str, unit: &str) -> bool {
    let unit = unit.to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    !unit.is_empty() && (name == unit || name.strip_suffix('b') == Some(&unit) || name.replace('i', "") == unit + "b")
}

/// As text, with its unit.
impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The longest duration that a file may ask for. Nothing that a gateway waits for takes longer, and sums of instants and
/// durations stay far from overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Units of durations in nanoseconds, the larger first.
const DURATIONS: [(&str, u128); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Parses `5ms`, `1.5s`, `2m`, `1h`.
///
/// # Errors
///
/// A text without a unit, with one that is not known, or longer than [`DURATION_MAX`].
pub fn parse_duration(text: &str) -> Result<Duration, TextError> {
    let expected = || TextError::new("a duration such as `5ms`, `1.5s`, `2m` or `1h`");
    let (number, unit) = split_unit(text);
    if unit.is_empty() {
        return Err(match exact(number, 1) {
            Scaled::Not => expected(),
            _ => expected().hint(format!("give a unit: `{number}s` or `{number}ms`")),
        });
    }
    let Some((_, scale)) = DURATIONS.into_iter().find(|(name, _)| *name == unit) else {
        return Err(expected().hint("the units are `us`, `ms`, `s`, `m` and `h`"));
    };
    match exact(number, scale) {
        Scaled::Exact(nanos) if nanos <= DURATION_MAX.as_nanos() => {
            u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| expected())
        }
        Scaled::Exact(_) => Err(expected().hint("the longest is `24h`")),
        Scaled::Finer => Err(expected().hint("there are no fractions of a nanosecond")),
        Scaled::Not => Err(expected()),
    }
}

/// Writes a duration as it is written in a file, in the largest unit that leaves no fraction: `5ms`, `1500ms`, `2m`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    let (unit, scale) = DURATIONS.into_iter().find(|(_, scale)| nanos.is_multiple_of(*scale)).unwrap_or(("ns", 1));
    format!("{}{unit}", nanos / scale)
}

/// A text that is shown nowhere: `Debug`, `Display` and `Serialize` give `<redacted>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// What is shown instead.
    pub const REDACTED: &str = "<redacted>";

    /// Wraps a text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// Returns the text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Self::REDACTED)
    }
}

/// Splits `1.5 s` into number and unit.
fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number.trim_end(), unit.trim_start())
}

/// What became of a decimal times its unit.
enum Scaled {
    /// A whole number.
    Exact(u128),
    /// Something finer than the smallest step, or too large to tell.
    Finer,
    /// The text is no decimal.
    Not,
}

/// Multiplies a decimal by a unit without rounding. Not through `f64`, which would let `0.07%` be 6.999… basis points.
fn exact(number: &str, scale: u128) -> Scaled {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') {
        return Scaled::Not;
    }
    // At most 40 digits: they fit, unless the number is out of any range that is accepted here.
    let Ok(all) = format!("{whole}{fraction}").parse::<u128>() else {
        return Scaled::Finer;
    };
    let Some(scaled) = all.checked_mul(scale) else {
        return Scaled::Finer;
    };
    let divisor = 10_u128.pow(fraction.len() as u32);
    if scaled % divisor == 0 { Scaled::Exact(scaled / divisor) } else { Scaled::Finer }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_are_read_and_written_in_per_cent() {
        for (text, points) in [("0%", 0), ("0.01%", 1), ("0.07%", 7), ("5%", 500), ("12.5%", 1250), ("100 %", 10_000)] {
            assert_eq!(text.parse::<Weight>().unwrap().basis_points(), points, "{text}");
        }
        for text in ["5", "0.05", "100.01%", "0.001%", "-1%", "%", "", "1e2%", ".5%", "5.%", "five%"] {
            assert!(text.parse::<Weight>().is_err(), "{text}");
        }
        assert_eq!("5".parse::<Weight>().unwrap_err().hint.unwrap(), "a weight is written in per cent: `5%`");
    }

    #[test]
    fn sizes_tell_binary_from_decimal_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("0", 0),
            ("64KiB", 65_536),
            ("16 MiB", 16 << 20),
            ("1MB", 1_000_000),
            ("1KB", 1_000),
            ("1.5GiB", 3 << 29),
            ("7B", 7),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
        for (text, hint) in [("16M", "write `16MiB`"), ("16Mi", "write `16MiB`"), ("16mb", "write `16MB`")] {
            assert_eq!(text.parse::<ByteSize>().unwrap_err().hint.unwrap(), hint, "{text}");
        }
        for text in ["", "MiB", "1.5", "99999999TiB", "-1", "1 MiB MiB", "0x10"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        for (text, micros) in
            [("5ms", 5_000), ("1.5s", 1_500_000), ("2m", 120_000_000), ("1h", 3_600_000_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_micros(micros), "{text}");
        }
        for text in ["5", "", "ms", "25h", "-1s", "1m30s", "1d", "0.1ns", "1..5s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_duration("5").unwrap_err().hint.unwrap(), "give a unit: `5s` or `5ms`");
    }

    #[test]
    fn a_secret_is_shown_nowhere() {
        let secret = Secret::new("hunter2".into());
        let shown = format!("{secret:?} {secret} {}", serde_json::to_string(&secret).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(secret.reveal(), "hunter2");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(points in 0..=10_000_u16, bytes: u64, nanos in 0..=DURATION_MAX.as_nanos() as u64) {
            let weight = Weight::from_basis_points(points).unwrap();
            prop_assert_eq!(weight.to_string().parse::<Weight>().unwrap(), weight);
            prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap(), ByteSize(bytes));
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)).unwrap(), duration);
        }

        #[test]
        fn no_text_makes_a_unit_panic(text in ".*", number in "[0-9.]{0,50}(%|s|MiB)?") {
            for text in [text, number] {
                drop((text.parse::<Weight>(), text.parse::<ByteSize>(), parse_duration(&text)));
            }
        }
    }
}
