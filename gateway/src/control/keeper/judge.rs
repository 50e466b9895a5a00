//! Looks at the rollouts that are under way, each second, and makes the moves that follow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockgate_config::model::{Decider, OnBad};

use super::{Keeper, blocking};
use crate::control::Actor;
use crate::control::choose;
use crate::control::events::{Draft, Kind};
use crate::control::facts::Facts;
use crate::control::judging::{Looked, SIGNALS};
use crate::control::quarantine::Why;
use crate::control::rollout::{self, Conclusion, Event, Rules, State, step};
use crate::control::time::Timestamp;

/// How often rollouts are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// How often what is known is written down, beside each move.
const KEEP: Duration = Duration::from_secs(5);

impl Keeper {
    /// Judges what was counted since the last look, and moves what is to be moved.
    pub(super) async fn look(&mut self) {
        if !self.deciding {
            return;
        }
        let (facts, now) = (Arc::clone(&self.loaded.facts), Timestamp::now());
        let looks: BTreeMap<usize, Looked> = (0..facts.config.rollouts.len())
            .filter_map(|index| Some((index, self.look_at(&facts, index, now)?)))
            .collect();
        self.tell(&facts, &looks);
        let mut moves: BTreeMap<usize, rollout::Step> = BTreeMap::new();
        for (&index, looked) in &looks {
            let config = &facts.config.rollouts[index];
            let Some(state) = choose::state(&facts, &self.saved, index) else { continue };
            if config.decider == Decider::External || moves.contains_key(&index) {
                continue;
            }
            let (conclusion, findings, others) = match self.waits_for(&facts, &looks, index, now) {
                Some(waiting) => (Conclusion::Undecided, vec![waiting], looked.findings.clone()),
                None => (looked.conclusion, looked.findings.clone(), looked.others.clone()),
            };
            let evidence = Why::Guard { findings, others };
            let stalled_after = config.guard.as_ref().map(|guard| guard.stalled_after).unwrap_or_default();
            let rules = Rules { pause: config.on_bad == OnBad::Pause, stalled_after };
            let event = Event::Judged { since: looked.since, conclusion, evidence: evidence.clone(), rules };
            let Ok(stepped) = step(state, event, now) else { continue };
            if stepped.1.is_empty() {
                continue;
            }
            if conclusion == Conclusion::Worse {
                // What is bad for one is bad for all that move with it.
                for other in facts.linked(index).into_iter().filter(|other| *other != index) {
                    let why = Why::Linked { rollout: config.name.to_string(), why: Box::new(evidence.clone()) };
                    let event = if rules.pause { Event::Pause(why) } else { Event::RollBack(why) };
                    let state = choose::state(&facts, &self.saved, other).filter(|state| state.is_under_way());
                    if let Some(Ok(stepped)) = state.map(|state| step(state, event, now)) {
                        moves.insert(other, stepped);
                    }
                }
            }
            moves.insert(index, stepped);
        }
        let moved = moves.values().any(|(_, effects)| !effects.is_empty());
        if moved {
            // Written first: whoever finds the move made finds what it rests on.
            self.keep_cases().await;
            let moves = moves.into_iter().collect();
            if let Err(refusal) = self.make(moves, &Actor::gateway(), now).await {
                tracing::error!(error = %refusal, "a rollout cannot be moved; it is tried again");
            }
        } else if self.kept.elapsed() >= KEEP && !self.cases.is_empty() {
            self.keep_cases().await;
        }
    }

    fn look_at(&mut self, facts: &Facts, index: usize, now: Timestamp) -> Option<Looked> {
        let config = &facts.config.rollouts[index];
        let state = choose::state(facts, &self.saved, index);
        let Some(state) = state.filter(|state| state.is_under_way() && config.guard.is_some()) else {
            self.cases.forget(&config.name);
            return None;
        };
        let counts = self.tools.counters.get(&config.name).map(|(counts, _)| counts);
        let shadow = self.tools.shadows.tally(&config.name).map(|tally| tally.counts());
        self.cases.look(config, state, counts.as_deref(), shadow, now)
    }

    /// Returns for which rollout one waits that could go up, but is linked: none does before all may.
    fn waits_for(
        &self,
        facts: &Facts,
        looks: &BTreeMap<usize, Looked>,
        index: usize,
        now: Timestamp,
    ) -> Option<String> {
        let climbs = |index: usize| looks.get(&index).is_some_and(|looked| looked.conclusion == Conclusion::NotWorse);
        let state = |index: usize| choose::state(facts, &self.saved, index);
        let place = |state: &State| state.climb.as_ref().map(|climb| (climb.step, state.weight));
        let own = state(index).filter(|state| climbs(index) && state.may_climb(now))?;
        facts.linked(index).into_iter().filter(|other| *other != index).find_map(|other| {
            let other_state = state(other).filter(|state| state.is_under_way())?;
            let ready = place(other_state) > place(own) || (climbs(other) && other_state.may_climb(now));
            (!ready).then(|| {
                format!("it may go on, and waits for `{}`, which it is linked with", facts.config.rollouts[other].name)
            })
        })
    }

    /// Shows what was seen: in metrics, to whoever asks why, and where a conclusion is another one, to whoever follows.
    fn tell(&self, facts: &Facts, looks: &BTreeMap<usize, Looked>) {
        let metrics = &self.tools.metrics;
        let mut shown = self.looked.write();
        let mut told = false;
        for (index, looked) in looks {
            let name = &facts.config.rollouts[*index].name;
            for signal in SIGNALS {
                let evidence = looked.verdict.evidence.iter().find(|evidence| *evidence.signal == *signal);
                let sure = evidence.map(|evidence| (1.0 - evidence.p_worse, 1.0 - evidence.p_not_worse));
                metrics.set_rollout_evidence(name, signal, sure);
            }
            let before = shown.get(&**name).map(|before| before.conclusion);
            if before.is_some_and(|before| before != looked.conclusion) {
                let conclusion = looked.conclusion.as_str().replace('-', " ");
                let subject = format!("rollout {name}");
                let text = format!("{subject}: {conclusion}: {}", looked.findings.join("; "));
                self.notices.note_other(Draft { kind: Kind::Verdict, action: "verdict", subject, text });
                told = true;
            }
        }
        shown.retain(|name, _| {
            let there = looks.keys().any(|index| *facts.config.rollouts[*index].name == **name);
            if !there {
                SIGNALS.into_iter().for_each(|signal| metrics.set_rollout_evidence(name, signal, None));
            }
            there
        });
        shown.extend(
            looks.iter().map(|(index, looked)| (facts.config.rollouts[*index].name.to_string(), looked.clone())),
        );
        drop(shown);
        if told {
            self.notices.flush();
        }
    }

    /// Writes down what is known. Where that fails, the next time may do; a restart would begin with less evidence.
    async fn keep_cases(&mut self) {
        self.kept = Instant::now();
        let text = match serde_json::to_vec(&self.cases) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(%error, "the evidence cannot be written down");
                return;
            }
        };
        let store = Arc::clone(&self.tools.store);
        if let Err(error) =
            blocking(move || store.lock().save_evidence(&text).map_err(|error| error.to_string())).await.flatten()
        {
            tracing::error!(%error, "the evidence cannot be written down");
        }
    }
}
