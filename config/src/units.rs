//! Quantities as people write them (`5ms`, `16MiB`, `5%`), parsed once and typed from there on.

use std::fmt;

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

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// A text that is shown nowhere: `Debug` and `Display` print `<redacted>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
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
        f.write_str("<redacted>")
    }
}
