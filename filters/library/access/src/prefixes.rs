//! A set of prefixes of byte strings.

/// Prefixes, sorted, and none of them the beginning of another: then the only one that a text can begin with is the
/// last one that is not greater than the text, and one binary search finds it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefixes {
    sorted: Vec<Box<[u8]>>,
}

impl Prefixes {
    /// Tells whether the text begins with one of them.
    pub(crate) fn begin(&self, text: &[u8]) -> bool {
        let after = self.sorted.partition_point(|prefix| **prefix <= *text);
        after > 0 && text.starts_with(&self.sorted[after - 1])
    }
}

impl FromIterator<Vec<u8>> for Prefixes {
    fn from_iter<I: IntoIterator<Item = Vec<u8>>>(prefixes: I) -> Self {
        let mut sorted: Vec<Box<[u8]>> = prefixes.into_iter().map(Vec::into_boxed_slice).collect();
        sorted.sort_unstable();
        // A prefix sorts right before what it begins.
        sorted.dedup_by(|longer, prefix| longer.starts_with(prefix));
        Self { sorted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Prefixes {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_text_begins_with_a_prefix_or_not() {
        let set = prefixes(&["/b/", "/a/", "/ab", "/a/c/"]);
        for inside in ["/a/", "/a/x", "/a/zzz", "/abc", "/ab", "/b/c"] {
            assert!(set.begin(inside.as_bytes()), "{inside}");
        }
        for outside in ["", "/", "/a", "/b", "/c/", "/ac", "/aa"] {
            assert!(!set.begin(outside.as_bytes()), "{outside}");
        }
    }

    #[test]
    fn the_empty_prefix_begins_everything() {
        let set = prefixes(&["a", ""]);
        assert!(set.begin(b""));
        assert!(set.begin(b"z"));
        assert!(!prefixes(&[]).begin(b"z"));
    }

    #[test]
    fn what_another_begins_is_dropped() {
        assert_eq!(prefixes(&["a", "ab", "abc", "b", "a-", "b"]), prefixes(&["a", "b"]));
    }

    #[test]
    fn the_search_agrees_with_trying_each() {
        // All texts of up to four letters out of two, against every seventh of them as prefixes.
        let texts: Vec<Vec<u8>> = (0..=4_u32)
            .flat_map(|length| {
                (0..1_u32 << length).map(move |bits| (0..length).map(|bit| b'a' + (bits >> bit & 1) as u8).collect())
            })
            .collect();
        for offset in 0..7 {
            let chosen: Vec<Vec<u8>> = texts.iter().skip(offset + 1).step_by(7).cloned().collect();
            let set: Prefixes = chosen.iter().cloned().collect();
            for text in &texts {
                assert_eq!(set.begin(text), chosen.iter().any(|prefix| text.starts_with(prefix)), "{text:?}");
            }
        }
    }
}
