//! Explains a track: which key of a request a rollout hashes, into which bucket, and what follows from it. The same split
//! decides here that decides for requests.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderMap;
use lockgate_config::model::{KeyPart, Rollout};
use lockgate_config::units::Weight;
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::rollout::State;
use crate::proxy::split::{Attributes, BUCKETS, Bucket, Split, Why};
use crate::track::Track;

/// What is asked about.
#[derive(Clone, Debug)]
pub enum Asked {
    /// The value of a key, whichever it comes from.
    Key(String),
    /// A request; what is missing is what it does not have.
    Request {
        /// As the client sends them, cookies among them.
        headers: HeaderMap,
        /// The client's address.
        client: Option<IpAddr>,
        /// The address at the other end of the connection, for an override.
        peer: Option<IpAddr>,
        /// Normalised, without the query.
        path: Option<String>,
        /// Without the `?`.
        query: Option<String>,
    },
}

/// Why a request is on its track.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Explanation {
    /// The rollout's name.
    pub rollout: String,
    /// Its state in a word: `idle`, `shadowing`, `ramping`, `stalled`, `paused`, `promoted`, `rolled-back`, `abandoned`.
    pub state: &'static str,
    /// The key that was hashed: `header x-user-id`, `client_ip`; none where none was.
    pub key: Option<String>,
    /// The key's bucket, 0 to 9,999; none where no key was hashed.
    pub bucket: Option<u16>,
    /// The first bucket that is stable's: the weight in hundredths of a per cent.
    pub threshold: u16,
    /// `stable` or `canary`.
    #[schema(value_type = String)]
    pub track: Track,
    /// In words.
    pub why: String,
}

/// Explains what a rollout decides.
pub fn explain(rollout: &Rollout, state: &State, asked: &Asked) -> Explanation {
    let weight = state.weight_in_effect();
    let threshold = weight.basis_points();
    let (key, bucket, decided, why) = match asked {
        Asked::Key(value) => {
            let split = Split::new(&rollout.salt, &rollout.key, weight, None);
            let bucket = split.bucket_of(value.as_bytes());
            (None, Some(bucket), split.track_of(bucket), compare(bucket, threshold))
        }
        Asked::Request { .. } => decide(rollout, weight, asked),
    };
    // Only a rollout that is under way splits requests.
    let (track, why) = match (state.is_under_way(), state.is_promoted()) {
        (true, _) => (decided, why),
        (false, true) => (
            Track::Stable,
            "the rollout is promoted: its canary's version serves everybody, on the stable track".to_owned(),
        ),
        (false, false) => (Track::Stable, format!("the rollout is {state}: stable serves everybody")),
    };
    Explanation {
        rollout: rollout.name.to_string(),
        state: state.word(),
        key,
        bucket: bucket.map(Bucket::number),
        threshold,
        track,
        why,
    }
}

fn decide(rollout: &Rollout, weight: Weight, asked: &Asked) -> (Option<String>, Option<Bucket>, Track, String) {
    let Asked::Request { headers, client, peer, path, query } = asked else {
        return (None, None, Track::Stable, String::new());
    };
    // A request always has an address and a path; a question need not.
    let has = |part: &KeyPart| match part {
        KeyPart::ClientIp => client.is_some(),
        KeyPart::Path => path.is_some(),
        KeyPart::Header(_) | KeyPart::Cookie(_) | KeyPart::Query(_) => true,
    };
    let keys: Vec<KeyPart> = rollout.key.iter().filter(|part| has(part)).cloned().collect();
    let split = Split::new(&rollout.salt, &keys, weight, rollout.overriding.as_ref());
    let decision = split.decide(&Attributes {
        headers,
        client: client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        peer: *peer,
        path: path.as_deref().unwrap_or("/"),
        query: query.as_deref(),
    });
    let key = match decision.why {
        Why::Key(index) => keys.get(index).map(name),
        Why::Override | Why::NoKey => None,
    };
    let why = match (decision.why, decision.bucket) {
        (Why::Override, _) => "a trusted peer asks for this track".to_owned(),
        (Why::Key(_), Some(bucket)) => compare(bucket, split.threshold()),
        (Why::Key(_) | Why::NoKey, _) => "the request has none of the rollout's keys, so it stays on stable".to_owned(),
    };
    (key, decision.bucket, decision.track, why)
}

fn compare(bucket: Bucket, threshold: u16) -> String {
    if bucket.number() < threshold {
        format!("bucket {bucket} is below {threshold} of {BUCKETS}")
    } else {
        format!("bucket {bucket} is not below {threshold} of {BUCKETS}")
    }
}

/// Returns a key as people call it.
pub fn name(part: &KeyPart) -> String {
    match part {
        KeyPart::Header(name) => format!("header {name}"),
        KeyPart::Cookie(name) => format!("cookie {name}"),
        KeyPart::Query(name) => format!("query {name}"),
        KeyPart::ClientIp => "client_ip".to_owned(),
        KeyPart::Path => "path".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use lockgate_config::model::{Decider, OnBad, Plan, RolloutSubject, ShadowLimits};
    use lockgate_config::problem::Place;
    use lockgate_config::units::{ByteSize, Share};

    use super::*;
    use crate::control::quarantine::Why as Reason;
    use crate::control::rollout::{self, Event, Versions, step};
    use crate::control::time::Timestamp;

    fn rollout() -> Rollout {
        Rollout {
            name: "app-2".into(),
            subject: RolloutSubject::Upstream { upstream: 0, canary: 1 },
            plan: Plan::Weight("50%".parse().expect("a weight")),
            guard: None,
            on_bad: OnBad::RollBack,
            decider: Decider::Local,
            shadow: ShadowLimits { sample: Share::ZERO, cpu: Share::ZERO, body: ByteSize(0) },
            link: None,
            key: vec![KeyPart::Header("x-user-id".to_owned()), KeyPart::ClientIp],
            salt: "app-2".into(),
            overriding: None,
            place: Place::none(),
        }
    }

    fn state(weight: &str) -> State {
        let versions = Versions { stable: "v1".to_owned(), canary: "v2".to_owned() };
        State::begin(versions, &rollout::Plan::ByHand(weight.parse().expect("a weight")), None, Timestamp::default()).0
    }

    fn request(user: Option<&'static str>, client: Option<IpAddr>) -> Asked {
        let headers = user.map(|user| (http::HeaderName::from_static("x-user-id"), HeaderValue::from_static(user)));
        Asked::Request { headers: headers.into_iter().collect(), client, peer: None, path: None, query: None }
    }

    #[test]
    fn a_key_and_a_request_that_has_it_get_the_same_bucket() {
        let by_key = explain(&rollout(), &state("50%"), &Asked::Key("user-42".to_owned()));
        let by_request = explain(&rollout(), &state("50%"), &request(Some("user-42"), None));
        assert_eq!(by_key.bucket, by_request.bucket);
        assert_eq!(by_key.track, by_request.track);
        assert_eq!(by_request.key.as_deref(), Some("header x-user-id"));
        assert_eq!(by_request.threshold, 5000);
    }

    #[test]
    fn the_first_key_that_is_there_is_hashed() {
        let client = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(explain(&rollout(), &state("50%"), &request(None, client)).key.as_deref(), Some("client_ip"));
        let without = explain(&rollout(), &state("50%"), &request(None, None));
        assert_eq!((without.key, without.bucket, without.track), (None, None, Track::Stable));
    }

    #[test]
    fn a_rollout_that_ended_explains_itself_by_its_state() {
        let key = Asked::Key("user-42".to_owned());
        let (promoted, _) = step(&state("5%"), Event::Promote, Timestamp::default()).expect("it is under way");
        let explained = explain(&rollout(), &promoted, &key);
        assert_eq!(explained.track, Track::Stable);
        assert!(explained.why.contains("its canary's version serves everybody"), "{}", explained.why);
        let why = Reason::Failures { failures: 5, window_ms: 30_000 };
        let (back, _) = step(&promoted, Event::RollBack(why), Timestamp::default()).expect("it is promoted");
        let explained = explain(&rollout(), &back, &key);
        assert_eq!(explained.track, Track::Stable);
        assert_eq!(explained.why, "the rollout is rolled back: 5 calls failed within 30s: stable serves everybody");
    }
}
