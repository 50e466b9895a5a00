//! An *artifact* is a component compiled for this engine, with its settings snapshotted into it where that is possible,
//! and a manifest of what `configure` declared; sealed with a keyed hash, as bytes.
//!
//! Layout: magic (8 bytes), keyed BLAKE3 of all that follows it (32), the artifact's key (32), length of the manifest
//! (4, little endian), length of the code (8), the manifest as JSON, the code.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::cache::Reject;
use crate::declare::Declarations;

const MAGIC: &[u8; 8] = b"lockgate";
const MAC_AT: Range<usize> = 8..40;
const KEY_AT: Range<usize> = 40..72;
const MANIFEST_LENGTH_AT: Range<usize> = 72..76;
const CODE_LENGTH_AT: Range<usize> = 76..84;
const HEADER_BYTES: usize = 84;

/// Part of each artifact's key: raised whenever the layout or the manifest changes its meaning.
pub(crate) const FORMAT: u32 = 1;

/// What one has to know about an artifact besides its code.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) declarations: Declarations,
    /// Why `configure` runs in each instance; none where its result is in the code.
    pub(crate) not_snapshotted: Option<String>,
}

/// The name of an artifact: a hash of everything that its code depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) [u8; 32]);

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Machine code that this gateway made: compiled in this process a moment ago, or opened under its seal. There is no
/// other way to make one, and nothing else is ever run.
pub(crate) struct Code<'a>(&'a [u8]);

impl<'a> Code<'a> {
    /// Vouches for the output of this process's own compiler.
    pub(crate) fn just_compiled(code: &'a [u8]) -> Self {
        Self(code)
    }

    pub(crate) fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// Returns the bytes of an artifact.
pub(crate) fn seal(mac_key: &[u8; 32], key: Key, manifest: &Manifest, code: &Code<'_>) -> Result<Vec<u8>, String> {
    let manifest = serde_json::to_vec(manifest).map_err(|error| error.to_string())?;
    let manifest_length = u32::try_from(manifest.len()).map_err(|_| "the manifest is too large".to_owned())?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + manifest.len() + code.0.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[0; 32]);
    bytes.extend_from_slice(&key.0);
    bytes.extend_from_slice(&manifest_length.to_le_bytes());
    bytes.extend_from_slice(&(code.0.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&manifest);
    bytes.extend_from_slice(code.0);
    let mac = blake3::keyed_hash(mac_key, &bytes[MAC_AT.end..]);
    bytes[MAC_AT].copy_from_slice(mac.as_bytes());
    Ok(bytes)
}

/// Returns what is in the bytes of an artifact, if they are what [`seal`] made for this `key`.
pub(crate) fn open<'a>(mac_key: &[u8; 32], key: Key, bytes: &'a [u8]) -> Result<(Manifest, Code<'a>), Reject> {
    if bytes.len() < HEADER_BYTES || !bytes.starts_with(MAGIC) {
        return Err(Reject::Truncated);
    }
    // The whole is checked before anything in it is believed. `blake3::Hash` compares in constant time.
    let mac: [u8; 32] = bytes[MAC_AT].try_into().map_err(|_| Reject::Truncated)?;
    if blake3::keyed_hash(mac_key, &bytes[MAC_AT.end..]) != mac {
        return Err(Reject::Tampered);
    }
    if bytes[KEY_AT] != key.0 {
        return Err(Reject::Misplaced);
    }
    let manifest_length = u32::from_le_bytes(bytes[MANIFEST_LENGTH_AT].try_into().map_err(|_| Reject::Truncated)?);
    let code_length = u64::from_le_bytes(bytes[CODE_LENGTH_AT].try_into().map_err(|_| Reject::Truncated)?);
    let code_at = HEADER_BYTES + manifest_length as usize;
    if bytes.len() as u64 != (code_at as u64).saturating_add(code_length) {
        return Err(Reject::Truncated);
    }
    let manifest = serde_json::from_slice(&bytes[HEADER_BYTES..code_at]).map_err(|_| Reject::Truncated)?;
    Ok((manifest, Code(&bytes[code_at..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC_KEY: [u8; 32] = [7; 32];
    const KEY: Key = Key([1; 32]);

    fn sealed() -> Vec<u8> {
        let manifest = Manifest { declarations: Declarations::default(), not_snapshotted: None };
        seal(&MAC_KEY, KEY, &manifest, &Code::just_compiled(b"code")).unwrap()
    }

    #[test]
    fn an_artifact_opens_under_its_own_key_only() {
        let bytes = sealed();
        let (manifest, code) = open(&MAC_KEY, KEY, &bytes).ok().unwrap();
        assert_eq!((manifest.not_snapshotted, code.as_bytes()), (None, &b"code"[..]));
        assert_eq!(open(&MAC_KEY, Key([2; 32]), &bytes).err(), Some(Reject::Misplaced));
        assert_eq!(open(&[8; 32], KEY, &bytes).err(), Some(Reject::Tampered));
    }

    #[test]
    fn no_flipped_bit_and_no_cut_goes_unnoticed() {
        let bytes = sealed();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(open(&MAC_KEY, KEY, &flipped).is_err(), "byte {at} bit {bit}");
            }
            assert!(open(&MAC_KEY, KEY, &bytes[..at]).is_err(), "cut at {at}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(open(&MAC_KEY, KEY, &longer).is_err());
    }
}
