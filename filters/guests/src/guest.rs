//! The guests by name.

use std::path::PathBuf;

use crate::build;

macro_rules! guests {
    ($($(#[doc = $doc:literal])+ $guest:ident = $name:literal,)+) => {
        /// A guest by what it does. Settings are JSON, as `configure` gets them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Guest {
            $($(#[doc = $doc])+ $guest,)+
        }

        impl Guest {
            /// Every guest.
            pub const ALL: &[Self] = &[$(Self::$guest,)+];

            /// Its name, as its folder's: `read-set`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$guest => $name,)+
                }
            }
        }
    };
}

guests! {
    /// Library: sets, appends and removes headers on both sides.
    Headers = "headers",
    /// Library: allows and denies by address, user agent and path.
    Access = "access",

    /// `{"value": "v1", "append": false}`: sets or appends `x-tag-request` on the request and `x-tag` on the response.
    Tag = "tag",
    /// Reads `user-agent` and sets `x-read-set` on the request, sets `x-read-set` on the response.
    ReadSet = "read-set",
}

impl Guest {
    /// Those of `filters/library`: what users are given.
    pub const LIBRARY: &[Self] = &[Self::Headers, Self::Access];

    /// Where its component is, built if need be.
    ///
    /// # Panics
    ///
    /// The guests cannot be built; the message is cargo's. For tests, that is: where it may fail, call
    /// [`build`](crate::build) before.
    pub fn path(self) -> PathBuf {
        let built = build::once().unwrap_or_else(|error| panic!("{error}"));
        built.join(format!("{}.wasm", self.name().replace('-', "_")))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_guest_is_built_and_is_webassembly() {
        for guest in Guest::ALL {
            let bytes =
                fs::read(guest.path()).unwrap_or_else(|error| panic!("{}: {error}", guest.name()));
            assert!(
                bytes.starts_with(b"\0asm"),
                "{} is not WebAssembly",
                guest.name()
            );
        }
    }
}
