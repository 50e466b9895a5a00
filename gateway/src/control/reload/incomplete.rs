//! A file that names what cannot be had. What can be is loaded all the same before it is refused: whoever mends one path
//! is not to be told of the next mistake only then.

use lockgate_config::problem::{Place, Problem, Report};
use lockgate_host::{Host, Progress};

use super::{Draft, Wanted, WantedFunction};
use crate::control::choose::Loaded;

/// Why a file did not become a draft.
#[derive(Debug)]
pub struct Incomplete {
    report: Report,
    /// What was read, with holes; none where not even the file itself is right.
    draft: Option<Draft>,
}

impl Incomplete {
    /// Returns what is wrong with a draft, of which there is something.
    pub(super) fn new(draft: Draft, problems: Vec<Problem>) -> Self {
        Self { report: Report::new(draft.facts.source.clone(), problems), draft: Some(draft) }
    }

    /// Returns what is wrong with the files, and with the components among them that could be read and are not in
    /// `serving`: loads them.
    pub fn load_rest(self, host: &Host, progress: &(dyn Progress + Sync), serving: Option<&Loaded>) -> Report {
        let Self { report, draft } = self;
        let Some(draft) = draft else { return report };
        let Report { source, mut problems } = report;
        let is_wrong = |place: &Place| problems.iter().any(|problem| problem.place == *place);
        let mut filters = draft.versions();
        filters.retain(|Wanted { filter, version, id }| {
            draft.component(&version.component).is_some()
                && !is_wrong(&version.component_place)
                && serving.is_none_or(|serving| serving.version(filter, id).is_none())
        });
        let mut functions = draft.functions();
        functions.retain(|WantedFunction { function, version, id }| {
            draft.component(&version.component).is_some()
                && !is_wrong(&version.component_place)
                && !version.grants.folders.iter().any(|folder| is_wrong(&folder.place))
                && serving.is_none_or(|serving| serving.function(function, id).is_none())
        });
        if let Err(more) = draft.load(&filters, &functions, host, progress) {
            problems.extend(more.problems);
        }
        Report::new(source, problems)
    }

    /// Does what [`Self::load_rest`] does where there is no host yet. Without one that can be made, what is known is all.
    pub fn load_rest_alone(self, progress: &(dyn Progress + Sync)) -> Report {
        let host = self.draft.as_ref().and_then(|draft| super::host(&draft.facts.config).ok());
        match host {
            Some(host) => self.load_rest(&host, progress, None),
            None => self.report,
        }
    }
}

impl From<Report> for Incomplete {
    fn from(report: Report) -> Self {
        Self { report, draft: None }
    }
}

impl From<Incomplete> for Report {
    /// What is wrong with the files, without a look at components that could be read.
    fn from(incomplete: Incomplete) -> Self {
        incomplete.report
    }
}
