//! Decides whether a file is sent, and which part of it: RFC 9110, sections 13 and 14. Pure.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use headers::{
    ETag, HeaderMapExt as _, IfMatch, IfModifiedSince, IfNoneMatch, IfRange, IfUnmodifiedSince, LastModified,
};
use http::HeaderMap;
use http::header::RANGE;

/// What a request's conditions say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// The client has it.
    NotModified,
    /// It is not what the client thinks.
    Failed,
    /// It has no such bytes.
    Unsatisfiable,
}

/// Returns what tells one state of a file from another: its tag, and when it was changed.
///
/// The tag is a strong one: length and time of modification to the nanosecond, and the coding, since each form of a file
/// has bytes of its own. Nothing of it is the machine's, so that copies on several nodes have the same.
pub(super) fn validators(length: u64, modified: SystemTime, encoding: Option<&str>) -> (Option<ETag>, LastModified) {
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let suffix = encoding.map(|encoding| format!("-{encoding}")).unwrap_or_default();
    let tag = format!("\"{length:x}-{:x}{suffix}\"", since.as_nanos());
    // A time to come would be cached as one: RFC 9110, section 8.8.2.1.
    (tag.parse().ok(), modified.min(SystemTime::now()).into())
}

/// Puts both into a response.
pub(super) fn put(headers: &mut HeaderMap, tag: &Option<ETag>, modified: &LastModified) {
    if let Some(tag) = tag {
        headers.typed_insert(tag.clone());
    }
    headers.typed_insert(*modified);
}

/// Decides by a request's conditions, in the order of RFC 9110, section 13.2.2.
pub(super) fn judge(conditions: &HeaderMap, tag: &Option<ETag>, modified: &LastModified, length: u64) -> Verdict {
    let time = SystemTime::from(*modified);
    let wrong = match (conditions.typed_get::<IfMatch>(), tag) {
        (Some(condition), Some(tag)) => !condition.precondition_passes(tag),
        (Some(_), None) => true,
        (None, _) => conditions.typed_get::<IfUnmodifiedSince>().is_some_and(|since| !since.precondition_passes(time)),
    };
    if wrong {
        return Verdict::Failed;
    }
    let known = match (conditions.typed_get::<IfNoneMatch>(), tag) {
        (Some(condition), Some(tag)) => !condition.precondition_passes(tag),
        (Some(_), None) => false,
        (None, _) => conditions.typed_get::<IfModifiedSince>().is_some_and(|since| !since.is_modified(time)),
    };
    if known {
        return Verdict::NotModified;
    }
    let another =
        conditions.typed_get::<IfRange>().is_some_and(|condition| condition.is_modified(tag.as_ref(), Some(modified)));
    let range = conditions.get(RANGE).and_then(|range| range.to_str().ok());
    // Several parts would come as one body of several kinds, which few clients ask for; all of it is an answer too.
    let range = range.filter(|range| !another && length > 0 && !range.contains(','));
    let Some(parsed) = range.and_then(|range| http_range_header::parse_range_header(range).ok()) else {
        return Verdict::Whole;
    };
    match parsed.validate(length).ok().and_then(|ranges| ranges.into_iter().next()) {
        Some(range) => Verdict::Part(*range.start()..*range.end() + 1),
        None => Verdict::Unsatisfiable,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderName, HeaderValue};

    use super::*;

    const TAG: &str = "\"64-3b9aca00\"";
    const TIME: &str = "Thu, 01 Jan 1970 00:00:01 GMT";
    const BEFORE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

    fn check(conditions: &[(&str, &str)], expect: &Verdict) {
        let (tag, modified) = validators(100, UNIX_EPOCH + Duration::from_secs(1), None);
        let headers = conditions
            .iter()
            .map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap()));
        assert_eq!(&judge(&headers.collect(), &tag, &modified, 100), expect, "{conditions:?}");
    }

    #[test]
    fn tags_differ_by_coding_and_time() {
        let at = |nanos, encoding| validators(100, UNIX_EPOCH + Duration::from_nanos(nanos), encoding).0;
        assert_eq!(at(1_000_000_000, None), Some(TAG.parse().unwrap()));
        assert_ne!(at(1_000_000_000, None), at(1_000_000_001, None));
        assert_ne!(at(1_000_000_000, None), at(1_000_000_000, Some("br")));
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        check(&[], &Verdict::Whole);
        check(&[("if-none-match", TAG)], &Verdict::NotModified);
        check(&[("if-none-match", "W/\"64-3b9aca00\"")], &Verdict::NotModified);
        check(&[("if-none-match", "*")], &Verdict::NotModified);
        check(&[("if-none-match", "\"other\"")], &Verdict::Whole);
        check(&[("if-modified-since", TIME)], &Verdict::NotModified);
        check(&[("if-modified-since", BEFORE)], &Verdict::Whole);
        // A tag that does not match says more than a time that does.
        check(&[("if-none-match", "\"other\""), ("if-modified-since", TIME)], &Verdict::Whole);
    }

    #[test]
    fn a_wrong_idea_of_the_file_is_refused() {
        check(&[("if-match", TAG)], &Verdict::Whole);
        check(&[("if-match", "\"other\"")], &Verdict::Failed);
        check(&[("if-unmodified-since", BEFORE)], &Verdict::Failed);
        check(&[("if-unmodified-since", TIME)], &Verdict::Whole);
    }

    #[test]
    fn parts_are_bytes_of_the_same_file() {
        check(&[("range", "bytes=0-9")], &Verdict::Part(0..10));
        check(&[("range", "bytes=90-")], &Verdict::Part(90..100));
        check(&[("range", "bytes=90-200")], &Verdict::Part(90..100));
        check(&[("range", "bytes=-10")], &Verdict::Part(90..100));
        check(&[("range", "bytes=100-")], &Verdict::Unsatisfiable);
        check(&[("range", "bytes=0-9,20-29")], &Verdict::Whole);
        check(&[("range", "lines=0-9")], &Verdict::Whole);
        check(&[("range", "bytes=nonsense")], &Verdict::Whole);
        check(&[("range", "bytes=0-9"), ("if-range", TAG)], &Verdict::Part(0..10));
        check(&[("range", "bytes=0-9"), ("if-range", "\"other\"")], &Verdict::Whole);
        check(&[("range", "bytes=0-9"), ("if-range", BEFORE)], &Verdict::Whole);
        check(&[("range", "bytes=0-9"), ("if-none-match", TAG)], &Verdict::NotModified);
    }
}
