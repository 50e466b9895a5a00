//! Asks the canary what stable was asked, call by call, and collects the differences. What stable's later calls were
//! given does not depend on the canary: after a difference the next call is compared all the same, as long as both go on.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lockgate_host::{BodyMode, Effects, Exchange, Filter, Instance, Level, Phase};

use crate::shadow::capture::{Call, Capture, Decided, Skip};
use crate::shadow::compare::{Comparison, Did, Difference, Kind, Redactor};
use crate::track::Track;

/// Differences of one request that are told: all kinds are counted, and a hundred headers say no more than a few.
const DIFFERENCES_MAX: usize = 16;

/// What came of the canary's calls on one request.
#[derive(Debug)]
pub(super) struct Replayed {
    /// None where both did the same.
    pub(super) differences: Vec<Difference>,
    /// How the canary failed, where it did.
    pub(super) failure: Option<String>,
    /// What it wrote to its log.
    pub(super) lines: Vec<(Level, String)>,
}

/// Runs the canary on what stable was given.
///
/// # Errors
/// Why that says nothing about the canary.
pub(super) async fn replay(canary: &Arc<Filter>, capture: Capture, redactor: &Redactor) -> Result<Replayed, Skip> {
    let mut instance = canary.acquire_for(Track::Canary.as_str(), Effects::Private).map_err(|_| Skip::Exhausted)?;
    let mut bodies = [Body::of(canary.request_body()), Body::of(canary.response_body())];
    let mut replayed = Replayed { differences: Vec::new(), failure: None, lines: Vec::new() };
    for call in capture.into_calls() {
        let Call { phase, before: mut exchange, piece, notes, decided: stable, after } = call;
        instance.show(notes);
        let body = bodies.get_mut(usize::from(phase == Phase::OnResponseBody));
        let canary = ask(&mut instance, phase, &mut exchange, piece.clone(), body.as_deref()).await;
        if canary.is_exhausted() {
            return Err(Skip::Exhausted);
        }
        if let Decided::Fail { kind, message } = &canary {
            replayed.failure = Some(format!("{kind}: {message}"));
        }
        let (did, would_do) = (Did { decided: &stable, after: &after }, Did { decided: &canary, after: &exchange });
        replayed.add(Comparison::new(redactor, phase).call(did, would_do));
        let goes_on = |decided: &Decided| matches!(decided, Decided::Continue | Decided::Replace(_));
        if !goes_on(&stable) || !goes_on(&canary) {
            break;
        }
        if let (Some((piece, end)), Some(body)) = (piece, body) {
            replayed.add(body.pass(phase, piece, end, stable, canary, redactor));
        }
    }
    let kept = instance.take_kept();
    replayed.lines = kept.lines;
    if kept.outbound_denied { Err(Skip::Outbound) } else { Ok(replayed) }
}

impl Replayed {
    fn add(&mut self, found: Vec<Difference>) {
        for difference in found {
            let new_kind = self.differences.iter().all(|known| known.kind != difference.kind);
            if new_kind || self.differences.len() < DIFFERENCES_MAX {
                self.differences.push(difference);
            }
        }
    }
}

async fn ask(
    instance: &mut Instance,
    phase: Phase,
    exchange: &mut Box<Exchange>,
    piece: Option<(Bytes, bool)>,
    body: Option<&Body>,
) -> Decided {
    match (phase, piece) {
        (Phase::OnRequest, _) => Decided::from(&instance.on_request(exchange).await),
        (Phase::OnResponse, _) => Decided::from(&instance.on_response(exchange).await),
        (_, Some((piece, end))) => {
            let Some(piece) = body.map_or(Some(piece.clone()), |body| body.hand_over(&piece, end)) else {
                return Decided::Replace(Bytes::new());
            };
            if phase == Phase::OnRequestBody {
                // Who is given the whole body can still write headers, also where stable saw it in pieces.
                exchange.request_sent &= !body.is_some_and(|body| body.mode == BodyMode::Buffer);
                Decided::from(&instance.on_request_body(exchange, piece, end).await)
            } else {
                Decided::from(&instance.on_response_body(exchange, piece, end))
            }
        }
        (_, None) => Decided::Continue,
    }
}

/// One direction's body, as it went in and as both versions passed it on. Where one holds pieces back and the other does
/// not, nothing differs as long as the whole is the same.
struct Body {
    mode: BodyMode,
    given: BytesMut,
    stable: BytesMut,
    canary: BytesMut,
}

impl Body {
    fn of(mode: BodyMode) -> Self {
        Self { mode, given: BytesMut::new(), stable: BytesMut::new(), canary: BytesMut::new() }
    }

    /// Returns what the canary is given now; none to wait for more.
    fn hand_over(&self, piece: &Bytes, end: bool) -> Option<Bytes> {
        match self.mode {
            BodyMode::None | BodyMode::Stream => Some(piece.clone()),
            BodyMode::Buffer if end => Some([&self.given[..], piece].concat().into()),
            BodyMode::Buffer => None,
        }
    }

    /// Notes what became of a piece, and compares at the end.
    fn pass(
        &mut self,
        phase: Phase,
        piece: Bytes,
        end: bool,
        stable: Decided,
        canary: Decided,
        redactor: &Redactor,
    ) -> Vec<Difference> {
        let passed = |decided: Decided, piece: &[u8], to: &mut BytesMut| match decided {
            Decided::Replace(other) => to.extend_from_slice(&other),
            _ => to.extend_from_slice(piece),
        };
        self.given.extend_from_slice(&piece);
        passed(stable, &piece, &mut self.stable);
        // What the canary leaves as it is, is all that it was given now.
        let given = if self.mode == BodyMode::Buffer { &self.given[..] } else { &piece[..] };
        passed(canary, given, &mut self.canary);
        if !end {
            return Vec::new();
        }
        let kind = if phase == Phase::OnRequestBody { Kind::RequestBody } else { Kind::ResponseBody };
        Comparison::new(redactor, phase).body(kind, &self.stable, &self.canary)
    }
}
