//! What is right in a configuration, and still hardly meant so. Nothing here keeps a gateway from serving.

use std::fmt;
use std::time::Duration;

use crate::model::{Config, Decider, Guard, Plan, Rollout, Stage};
use crate::problem::{Problem, Report, Source};
use crate::units::{Weight, format_duration};

/// Requests in a second that hardly any rollout's routes have: who needs more of them to leave a step will wait for ever.
const REQUESTS_PER_SECOND_MAX: f64 = 10_000.0;

/// What is hardly meant so. Displays as a [`Report`] does, with `warning` in the place of `error`.
#[derive(Clone, Debug)]
pub struct Warnings(Report);

impl Warnings {
    /// Looks a configuration through.
    #[must_use]
    pub fn of(config: &Config, source: &Source) -> Self {
        let problems = config.rollouts.iter().flat_map(|rollout| of_rollout(rollout, source)).collect();
        Self(Report::new(source.clone(), problems))
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.problems.is_empty()
    }

    /// Returns each in one line, without its place.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.problems.iter().map(|problem| match &problem.hint {
            Some(hint) => format!("{}; {hint}", problem.message),
            None => problem.message.clone(),
        })
    }
}

impl fmt::Display for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.render_all("warning", f)
    }
}

fn of_rollout(rollout: &Rollout, source: &Source) -> Vec<Problem> {
    let name = &rollout.name;
    let at = |key: &str| source.place_of(&format!("rollouts.{name}.{key}"));
    let mut warnings = Vec::new();
    if rollout.decider == Decider::External {
        let problem = Problem::new(format!("`{name}` never moves by itself"), at("decider"));
        warnings.push(problem.hint(format!(
            "whoever decides reads `GET /api/v1/rollouts/{name}/counts` of every gateway, and sets the weight with `PUT /api/v1/rollouts/{name}/weight` on each"
        )));
    }
    let Plan::Steps(steps) = &rollout.plan else { return warnings };
    if let Some(last) = steps.last().filter(|last| last.stage != Stage::Serve(Weight::FULL)) {
        let stage = match last.stage {
            Stage::Serve(weight) => format!("the last step is `{weight}`"),
            Stage::Shadow(_) => "the last step is a shadow".to_owned(),
        };
        let problem = Problem::new(format!("`{name}` never ends by itself: {stage}"), at("steps"));
        warnings.push(problem.hint("add `100%`, after which the canary is promoted; or promote it yourself"));
    }
    let Some(guard) = rollout.guard.as_ref().filter(|_| rollout.decider == Decider::Local) else { return warnings };
    for (index, step) in steps.iter().enumerate() {
        let patience = step.hold + guard.stalled_after;
        let share = match step.stage {
            Stage::Serve(weight) => f64::from(weight.basis_points()) / 10_000.0,
            Stage::Shadow(sample) => sample.ratio(),
        };
        let requests = needed(guard, step.stage);
        if requests / share / patience.as_secs_f64() > REQUESTS_PER_SECOND_MAX {
            warnings.push(too_few(name, index, step.stage, requests, share, patience, at(&format!("steps[{index}]"))));
        }
    }
    warnings
}

fn too_few(
    name: &str,
    index: usize,
    stage: Stage,
    requests: f64,
    share: f64,
    patience: Duration,
    place: crate::problem::Place,
) -> Problem {
    let stage = match stage {
        Stage::Serve(weight) => weight.to_string(),
        Stage::Shadow(sample) => format!("shadow {sample}"),
    };
    let rate = (requests / share / patience.as_secs_f64()).ceil();
    let message = format!("step {} of `{name}`, {stage}, is hardly ever left", index + 1);
    let label = format!(
        "needs about {requests:.0} requests of the canary, {rate:.0} a second in all, within {}",
        format_duration(patience)
    );
    Problem::new(message, place).label(label).hint("begin with more, or lower `min_requests` or raise a `tolerance`")
}

/// Returns how many requests of the canary a step needs about, if nothing at all goes wrong: even then, a share is known to
/// be below a tolerance only after as many requests as make its absence unlikely.
fn needed(guard: &Guard, stage: Stage) -> f64 {
    let surprise = -(1.0 - guard.confidence.ratio()).max(f64::MIN_POSITIVE).ln();
    let tolerances = match stage {
        Stage::Shadow(_) => [guard.agreement.map(|agreement| 1.0 - agreement.ratio()), None, None],
        Stage::Serve(_) => [
            guard.failures.as_ref().map(|failures| failures.tolerance.ratio()),
            guard.denials.map(|tolerance| tolerance.ratio()),
            guard.call_failures.map(|tolerance| tolerance.ratio()),
        ],
    };
    let smallest = tolerances.into_iter().flatten().fold(1.0, f64::min);
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let least = guard.min_requests as f64;
    least.max(surprise / smallest.max(f64::MIN_POSITIVE))
}
