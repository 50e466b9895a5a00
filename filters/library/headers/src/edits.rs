//! What is done to one side's headers.

use std::collections::BTreeMap;

use lockgate_filter::header::check_name;
use serde::Deserialize;

use crate::template::{Side, Template};

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    #[serde(default)]
    set: BTreeMap<String, String>,
    #[serde(default)]
    append: BTreeMap<String, Values>,
    #[serde(default)]
    remove: Vec<String>,
}

/// One value, or several in this order.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a template or a list of templates")]
enum Values {
    One(String),
    Several(Vec<String>),
}

impl Values {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Several(values) => values,
        }
    }
}

/// As it is meant: names and templates that have been checked, in the order in which they are applied.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    pub(crate) remove: Vec<String>,
    pub(crate) set: Vec<(String, Template)>,
    pub(crate) append: Vec<(String, Template)>,
}

impl Edits {
    /// Reads one side's settings. Each problem says which setting it is about; what has one is left out.
    pub(crate) fn read(written: Written, side: Side, problems: &mut Vec<String>) -> Self {
        let mut edits = Self::default();
        let place = side.name();

        for name in written.remove {
            match check_name(&name) {
                Ok(()) => edits.remove.push(name.to_ascii_lowercase()),
                Err(refusal) => {
                    problems.push(format!("`{place}.remove`: header `{name}` cannot be removed: {refusal}"))
                }
            }
        }
        for (name, template) in &written.set {
            let place = format!("{place}.set.{name}");
            if let Some(edit) = read_one(name, template, side, &place, problems) {
                if edits.set.iter().any(|(other, _)| *other == edit.0) {
                    problems.push(format!("`{place}`: the header is set twice, in different case"));
                } else {
                    edits.set.push(edit);
                }
            }
        }
        for (name, templates) in &written.append {
            let place = format!("{place}.append.{name}");
            for template in templates.as_slice() {
                edits.append.extend(read_one(name, template, side, &place, problems));
            }
        }
        edits
    }
}

fn read_one(
    name: &str,
    template: &str,
    side: Side,
    place: &str,
    problems: &mut Vec<String>,
) -> Option<(String, Template)> {
    if let Err(refusal) = check_name(name) {
        problems.push(format!("`{place}`: header `{name}` cannot be written: {refusal}"));
        return None;
    }
    match Template::parse(template, side) {
        Ok(template) => Some((name.to_ascii_lowercase(), template)),
        Err(problem) => {
            problems.push(format!("`{place}`: {problem}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, side: Side) -> (Edits, Vec<String>) {
        let mut problems = Vec::new();
        let written = serde_json::from_str(json).expect("settings of the right shape");
        let edits = Edits::read(written, side, &mut problems);
        (edits, problems)
    }

    #[test]
    fn names_are_kept_in_lower_case_and_values_in_order() {
        let (edits, problems) = read(
            r#"{"set": {"X-A": "1"}, "append": {"X-B": ["2", "3"], "X-C": "4"}, "remove": ["Server"]}"#,
            Side::Response,
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(edits.remove, ["server"]);
        let names = |edits: &[(String, Template)]| edits.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&edits.set), ["x-a"]);
        assert_eq!(names(&edits.append), ["x-b", "x-b", "x-c"]);
        let appended = edits.append.iter().map(|(_, template)| template.fill(|_| Vec::new()));
        assert!(appended.eq([b"2", b"3", b"4"]));
    }

    #[test]
    fn every_problem_is_reported_with_its_setting() {
        let (_, problems) = read(
            r#"{
                "set": {"Host": "a", "x y": "b", "x-c": "${rout}", "X-D": "1", "x-d": "2"},
                "append": {"x-e": ["fine", "${response.status}"]},
                "remove": ["content-length", "x-fine"]
            }"#,
            Side::Request,
        );
        assert_eq!(
            problems,
            [
                "`request.remove`: header `content-length` cannot be removed: the gateway owns it",
                "`request.set.Host`: header `Host` cannot be written: the gateway owns it",
                "`request.set.x y`: header `x y` cannot be written: it is not a header name",
                "`request.set.x-c`: unknown placeholder `${rout}`: expected one of `request.method`, \
                 `request.scheme`, `request.host`, `request.path`, `request.header.NAME`, `request.id`, \
                 `client.address`, `route`",
                "`request.set.x-d`: the header is set twice, in different case",
                "`request.append.x-e`: placeholder `${response.status}`: there is no response yet; it can stand \
                 in `response` only",
            ]
        );
    }
}
