//! How rollouts move: `steps`, `guard`, `shadow` and `link`.

use std::time::Duration;

use super::{Resolver, line_of};
use crate::file::forms::Either;
use crate::file::plan::{self, Off, OffOr, Slowness, StepForm, StepShort};
use crate::file::written::Written;
use crate::file::{self};
use crate::model::{
    Decider, FailureGuard, FailureKind, Guard, OnBad, Plan, Rollout, ShadowLimits, SlownessGuard, Stage, Step,
};
use crate::problem::{Place, Problem};
use crate::tree::Node;
use crate::units::{Share, Weight};

/// How long a step lasts that does not say it.
const HOLD: Duration = Duration::from_secs(5 * 60);

/// How much more the canary of a filter or function may deny.
const DENIALS: u16 = 100;

/// On how many of the requests a shadow must agree.
const AGREEMENT: u16 = 9_900;

/// The least that may be asked of a verdict, and the most that evidence can give.
const CONFIDENCE: (u16, u16) = (5_000, 9_999);

/// What a guard judges: not everything can be watched of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Filter,
    Function,
    Upstream,
}

/// What of a rollout says how it moves.
pub(super) struct Moves {
    pub(super) plan: Plan,
    pub(super) guard: Option<Guard>,
    pub(super) on_bad: OnBad,
    pub(super) decider: Decider,
    pub(super) shadow: ShadowLimits,
}

impl Resolver<'_> {
    /// Returns how a rollout moves; nothing where that cannot be told.
    pub(super) fn moves(&mut self, rollout: &file::Rollout, node: &Node, place: &Place) -> Option<Moves> {
        let (of_filter, of_function) = (rollout.filter.is_some(), rollout.function.is_some());
        let subject = match (of_filter, of_function) {
            (true, _) => Judged::Filter,
            (false, true) => Judged::Function,
            (false, false) => Judged::Upstream,
        };
        let plan = self.plan(rollout, node, place)?;
        let shadowed = match &plan {
            Plan::Weight(_) => false,
            Plan::Steps(steps) => steps.iter().any(|step| matches!(step.stage, Stage::Shadow(_))),
            Plan::Shadow => true,
        };
        if shadowed && !of_filter && (rollout.upstream.is_some() || of_function) {
            let at = if matches!(plan, Plan::Shadow) { "mode" } else { "steps" };
            let kind = if of_function { "a function" } else { "an upstream" };
            let problem = Problem::new(format!("{kind} cannot be a shadow"), node.key_place(at));
            self.problem(
                problem.hint("it would do everything twice; a shadow is a filter whose effects are kept back"),
            );
        }
        if rollout.shadow.is_some() && !shadowed && !node.damaged {
            let problem = Problem::new("nothing of this rollout is a shadow", node.key_place("shadow"));
            self.problem(problem.hint("begin with a step `shadow`, or set `mode: shadow`"));
        }
        let guard = match (&rollout.guard, &plan) {
            (Some(guard), _) => Some(self.guard(guard, node.at("guard"), subject, &plan, shadowed)),
            (None, Plan::Weight(_)) => None,
            (None, _) => Some(self.guard(&plan::Guard::default(), node, subject, &plan, shadowed)),
        };
        if rollout.on_bad.is_some() && guard.is_none() && !node.damaged {
            let problem = Problem::new("nothing says what is bad", node.key_place("on_bad"));
            self.problem(problem.hint("add a `guard`, or leave `on_bad` out"));
        }
        let shadow = rollout.shadow.as_ref();
        if let Some(shadow) = shadow {
            let at = node.at("shadow");
            for (key, share) in [("sample", shadow.sample.0), ("cpu", shadow.cpu.0)] {
                if share == Share::ZERO {
                    let problem = Problem::new("a shadow that never runs shows nothing", at.at(key).place.clone());
                    self.problem(problem.hint("say more than `0%`, or leave it out for the default"));
                }
            }
        }
        let default = plan::Shadow::default();
        let shadow = shadow.unwrap_or(&default);
        Some(Moves {
            plan,
            guard,
            on_bad: match rollout.on_bad {
                Some(plan::OnBad::Pause) => OnBad::Pause,
                Some(plan::OnBad::RollBack) | None => OnBad::RollBack,
            },
            decider: match rollout.decider {
                plan::Decider::Local => Decider::Local,
                plan::Decider::External => Decider::External,
            },
            shadow: ShadowLimits { sample: shadow.sample.0, cpu: shadow.cpu.0, body: shadow.body.0 },
        })
    }

    fn plan(&mut self, rollout: &file::Rollout, node: &Node, place: &Place) -> Option<Plan> {
        let shadow = matches!(rollout.mode, plan::Mode::Shadow);
        match (&rollout.weight, &rollout.steps) {
            (Some(_), Some(_)) => {
                let problem = Problem::new("a rollout has a weight or steps", node.key_place("weight"));
                let hint = "leave `weight` out: the first step says where the canary begins";
                self.problem(problem.label("`steps` is there too").hint(hint));
                None
            }
            (Some(_), None) | (None, Some(_)) if shadow => {
                let key = if rollout.weight.is_some() { "weight" } else { "steps" };
                let problem = Problem::new("a canary that is a shadow serves nobody", node.key_place(key));
                let hint = match key {
                    "weight" => "leave `weight` out; or leave `mode` out, and let `steps` begin with `shadow`",
                    _ => "leave `mode` out: the step `shadow` says it",
                };
                self.problem(problem.label("`mode` is `shadow`").hint(hint));
                None
            }
            (Some(weight), None) => Some(Plan::Weight(weight.0)),
            (None, Some(steps)) => self.steps(rollout, steps, node.at("steps")),
            (None, None) if shadow => Some(Plan::Shadow),
            (None, None) => {
                if !node.damaged {
                    let problem = Problem::new("it is not said how far the rollout goes", place.clone());
                    let hint = "add `weight: 5%`, which a person moves, or `steps: [1%, 10%, 50%, 100%]`, which it climbs by itself";
                    self.problem(problem.hint(hint));
                }
                None
            }
        }
    }

    fn steps(&mut self, rollout: &file::Rollout, forms: &[StepForm], node: &Node) -> Option<Plan> {
        if forms.is_empty() {
            if !node.damaged {
                let problem = Problem::new("there are no steps", node.place.clone());
                self.problem(problem.hint("write them as `[1%, 10%, 50%, 100%]`"));
            }
            return None;
        }
        let sample = rollout.shadow.as_ref().map_or_else(|| plan::Shadow::default().sample.0, |shadow| shadow.sample.0);
        let steps: Vec<Option<Step>> = forms
            .iter()
            .enumerate()
            .map(|(index, form)| {
                let item = node.item(index);
                let (stage, hold) = match form {
                    Either::Short(Written(StepShort::Weight(weight))) => (Stage::Serve(*weight), None),
                    Either::Short(Written(StepShort::Shadow)) => (Stage::Shadow(sample), None),
                    Either::Long(map) => (self.stage(map, item)?, map.hold.as_ref()),
                };
                Some(Step { stage, hold: hold.map_or(HOLD, |hold| hold.0) })
            })
            .collect();
        let steps: Vec<Step> = steps.into_iter().collect::<Option<_>>()?;
        for (index, step) in steps.iter().enumerate() {
            let at = &node.item(index).place;
            match (step.stage, index.checked_sub(1).map(|before| steps[before].stage)) {
                (Stage::Shadow(_), Some(Stage::Serve(_))) => {
                    let problem = Problem::new("a canary that has served is no shadow any more", at.clone());
                    self.problem(problem.hint("put the shadow first"));
                }
                (Stage::Shadow(next), Some(Stage::Shadow(before))) if next <= before => {
                    let problem = Problem::new("the sample does not rise", at.clone());
                    self.problem(
                        problem.label(format!("the step before has `{before}`")).hint("leave one of them out"),
                    );
                }
                (Stage::Serve(next), Some(Stage::Serve(before))) if next <= before => {
                    let problem = Problem::new("the weight does not rise", at.clone());
                    let hint = "each step is larger than the one before: a rollout goes back as a whole, or not at all";
                    self.problem(problem.label(format!("the step before has `{before}`")).hint(hint));
                }
                (Stage::Serve(Weight::ZERO), _) | (Stage::Shadow(Share::ZERO), _) => {
                    let problem =
                        Problem::new("at `0%` the canary sees nothing, so that it cannot be judged", at.clone());
                    self.problem(problem.hint("begin with `1%`, or with `shadow`"));
                }
                _ => {}
            }
        }
        Some(Plan::Steps(steps.into()))
    }

    fn stage(&mut self, map: &plan::StepMap, item: &Node) -> Option<Stage> {
        match (&map.weight, &map.shadow) {
            (Some(weight), None) => Some(Stage::Serve(weight.0)),
            (None, Some(sample)) => Some(Stage::Shadow(sample.0)),
            (Some(_), Some(_)) => {
                let problem = Problem::new("a step has a weight, or is a shadow", item.key_place("shadow"));
                self.problem(problem.label("`weight` is there too").hint("make two steps of it"));
                None
            }
            (None, None) => {
                if !item.damaged {
                    let problem = Problem::new("a step needs a weight", item.place.clone());
                    self.problem(problem.hint("write `{ weight: 5%, hold: 10m }`"));
                }
                None
            }
        }
    }

    fn guard(&mut self, guard: &plan::Guard, node: &Node, subject: Judged, plan: &Plan, shadowed: bool) -> Guard {
        let serves = !matches!(plan, Plan::Shadow);
        self.check_watched(guard, node, subject);
        let failures = match &guard.failures {
            Some(Either::Short(Off::Off)) => None,
            Some(Either::Long(failures)) => Some(self.failures(failures, node.at("failures"))),
            None => Some(self.failures(&plan::Failures::default(), node)),
        };
        let latency = match &guard.latency {
            Some(Either::Long(slowness)) => Some(self.slowness(slowness, node.at("latency"))),
            Some(Either::Short(Off::Off)) | None => None,
        };
        let denials: Option<&OffOr<plan::Tolerance>> = guard.denials.as_ref();
        let denials = match denials {
            Some(Either::Short(Off::Off)) => None,
            Some(Either::Long(denials)) => {
                Some(self.tolerance(denials.tolerance.0, node.at("denials").at("tolerance")))
            }
            None => Share::from_basis_points(DENIALS),
        };
        let calls = guard.calls.as_ref();
        let calls_at = node.at("calls");
        let call_failures = calls.and_then(|calls| calls.failures.as_ref()).map(|tolerance| tolerance.0);
        let call_failures = call_failures.map(|share| self.tolerance(share, calls_at.at("failures")));
        let call_duration = calls.and_then(|calls| calls.duration.as_ref());
        let call_duration = call_duration.map(|slowness| self.slowness(slowness, calls_at.at("duration")));
        let call_memory = calls.and_then(|calls| calls.memory.as_ref()).map(|tolerance| tolerance.0);
        let call_memory = call_memory.map(|share| self.tolerance(share, calls_at.at("memory")));
        if guard.agreement.is_some() && !shadowed && !node.damaged {
            let problem = Problem::new("nothing of this rollout is a shadow", node.key_place("agreement"));
            self.problem(problem.hint("begin with a step `shadow`, or leave `agreement` out"));
        }
        let agreement = guard.agreement.as_ref().map(|share| share.0).or(Share::from_basis_points(AGREEMENT));
        let agreement = agreement.filter(|_| shadowed);
        if agreement == Some(Share::FULL) {
            let problem =
                Problem::new("no number of requests shows that all of them agree", node.at("agreement").place.clone());
            self.problem(problem.hint("say `99.9%`, for example"));
        }
        let confidence = guard.confidence.0;
        if !(CONFIDENCE.0..=CONFIDENCE.1).contains(&confidence.basis_points()) {
            let problem =
                Problem::new("evidence does not come with this confidence", node.at("confidence").place.clone());
            self.problem(problem.label("from `50%` to `99.99%`").hint("`99%` is a good choice"));
        }
        let guard = Guard {
            failures: failures.filter(|_| serves),
            latency: latency.filter(|_| serves),
            denials: denials.filter(|_| serves && subject != Judged::Upstream),
            call_failures: call_failures.filter(|_| serves && subject != Judged::Upstream),
            call_duration: call_duration.filter(|_| serves && subject != Judged::Upstream),
            call_memory: call_memory.filter(|_| serves && subject == Judged::Filter),
            agreement,
            confidence,
            min_requests: guard.min_requests.0.0.into(),
            stalled_after: guard.stalled_after.0.0,
        };
        if serves && guard.watches_nothing() && !node.damaged {
            let problem = Problem::new("the guard watches nothing", node.place.clone());
            self.problem(problem.hint("leave `failures` on, or watch `latency`; to move by hand, set a `weight`"));
        }
        guard
    }

    /// Checks that what is watched is known of what is moved.
    fn check_watched(&mut self, guard: &plan::Guard, node: &Node, subject: Judged) {
        match subject {
            Judged::Filter => {}
            Judged::Function => {
                if guard.calls.as_ref().is_some_and(|calls| calls.memory.is_some()) {
                    let place = node.at("calls").key_place("memory");
                    let problem = Problem::new("the memory of a function is not counted by request", place);
                    self.problem(problem.hint("of its calls, `failures` and `duration` can be watched"));
                }
            }
            Judged::Upstream => {
                let denials = matches!(guard.denials, Some(Either::Long(_)));
                let watched = [("denials", denials), ("calls", guard.calls.is_some())];
                for (key, _) in watched.into_iter().filter(|(_, there)| *there) {
                    let message = "only a filter or function denies requests and has calls";
                    let problem = Problem::new(message, node.key_place(key));
                    self.problem(problem.hint("of an upstream, `failures` and `latency` can be watched"));
                }
            }
        }
    }

    fn failures(&mut self, failures: &plan::Failures, node: &Node) -> FailureGuard {
        let of: Vec<FailureKind> = failures.of.iter().map(|kind| kind.0).collect();
        if of.is_empty() && !node.damaged {
            let problem = Problem::new("nothing counts as a failure", node.at("of").place.clone());
            self.problem(problem.hint("leave `of` out for the default, or set `failures: off`"));
        }
        FailureGuard { tolerance: self.tolerance(failures.tolerance.0, node.at("tolerance")), of }
    }

    fn slowness(&mut self, slowness: &Slowness, node: &Node) -> SlownessGuard {
        let quantile = slowness.quantile.0;
        if quantile == Share::ZERO || quantile == Share::FULL {
            let problem = Problem::new("this is no quantile", node.at("quantile").place.clone());
            self.problem(problem.hint("the median is `50%`; `99%` is what one request in a hundred exceeds"));
        }
        SlownessGuard { quantile, tolerance: self.tolerance(slowness.tolerance.0, node.at("tolerance")) }
    }

    fn tolerance(&mut self, share: Share, node: &Node) -> Share {
        if share == Share::ZERO {
            let problem =
                Problem::new("no number of requests shows that two versions do not differ at all", node.place.clone());
            self.problem(problem.hint("say how much worse the canary may be: `0.5%`, for example"));
        }
        share
    }

    /// Checks that rollouts that move together can.
    pub(super) fn check_links(&mut self, rollouts: &[Rollout], section: &Node) {
        for (index, rollout) in rollouts.iter().enumerate() {
            let Some(link) = &rollout.link else { continue };
            let place = section.at(&rollout.name).at("link").place.clone();
            let mut others = rollouts.iter().enumerate().filter(|(_, other)| other.link.as_ref() == Some(link));
            let first = others.next().map_or(rollout, |(_, first)| first);
            if others.next().is_none() {
                let problem = Problem::new(format!("no other rollout has the link `{link}`"), place);
                self.problem(problem.hint("give it to all that move together, or leave it out"));
                continue;
            }
            let differs = [
                ("steps", first.plan != rollout.plan),
                ("key", first.key != rollout.key),
                ("salt", first.salt != rollout.salt),
                ("decider", first.decider != rollout.decider),
            ];
            if let Some((what, _)) = differs.into_iter().find(|(_, differs)| *differs)
                && rollouts.get(index).is_some_and(|rollout| rollout.name != first.name)
            {
                let what = if what == "steps" && !matches!(first.plan, Plan::Steps(_)) { "weight" } else { what };
                let message =
                    format!("`{}` and `{}` move together, and differ in their `{what}`", first.name, rollout.name);
                let problem = Problem::new(message, place).label(format!(
                    "the first is `{}`{}",
                    first.name,
                    line_of(&first.place)
                ));
                self.problem(problem.hint("give both the same, so that the same users meet both canaries"));
            }
        }
    }
}
