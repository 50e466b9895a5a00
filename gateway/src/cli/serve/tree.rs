//! What the files of a folder answer. A file's path is its route's: `users/[id].wasm` answers `/users/{id}`, and
//! `users/index.wasm` answers `/users`. Pure.

use std::collections::BTreeMap;

use lockgate_config::model::{PathPattern, Segment};

/// What the name of a component ends with.
pub(super) const COMPONENT: &str = ".wasm";
/// What the name of the file with a component's settings ends with.
pub(super) const SETTINGS: &str = ".yaml";
/// The folder whose files are sent as they are.
pub(super) const PUBLIC: &str = "public";
/// Longest name that the configuration takes.
const NAME_BYTES_MAX: usize = 64;

/// A component of the folder, and what it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// Its path in the folder.
    pub(super) file: String,
    /// What it is called in logs and metrics.
    pub(super) name: String,
    /// The paths of its routes. At least one.
    pub(super) patterns: Vec<String>,
}

/// What the files of a folder come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// In the order of the files.
    pub(super) components: Vec<Planned>,
    /// The path of the route of the folder `public`, where there is one.
    pub(super) public: Option<String>,
    /// What cannot be served, and why.
    pub(super) complaints: Vec<String>,
}

impl Plan {
    /// Returns what files come to, each named by its path in the folder, below a prefix without a `/` at its end. Where
    /// two of them answer the same, the first does.
    pub(super) fn new<'a>(prefix: &str, files: impl IntoIterator<Item = &'a str>, has_public: bool) -> Self {
        let mut plan = Self::default();
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for file in files {
            let found = match patterns(prefix, file) {
                Ok(found) => found,
                Err(why) => {
                    plan.complaints.push(format!("`{file}` is not served: {why}"));
                    continue;
                }
            };
            let mut patterns = Vec::new();
            for pattern in found {
                match taken.get(&shape(&pattern)) {
                    Some(first) => {
                        plan.complaints.push(format!("`{file}` does not answer `{pattern}`: `{first}` does"));
                    }
                    None => {
                        taken.insert(shape(&pattern), file.to_owned());
                        patterns.push(pattern);
                    }
                }
            }
            if patterns.is_empty() {
                continue;
            }
            let name = name(file);
            if let Some(first) = names.insert(name.clone(), file.to_owned()) {
                plan.complaints.push(format!("`{file}` is not served: its name would be that of `{first}`, `{name}`"));
                continue;
            }
            plan.components.push(Planned { file: file.to_owned(), name, patterns });
        }
        if has_public {
            let pattern = format!("{prefix}/*");
            match taken.get(&pattern) {
                Some(first) => {
                    plan.complaints.push(format!("`{PUBLIC}` does not answer `{pattern}`: `{first}` does"));
                }
                None => plan.public = Some(pattern),
            }
        }
        plan
    }
}

/// Returns the paths that a component answers, the first for people.
///
/// # Errors
///
/// Its name is none that a path could be made of.
fn patterns(prefix: &str, file: &str) -> Result<Vec<String>, String> {
    let stem = file.strip_suffix(COMPONENT).unwrap_or(file);
    let (folders, last) = stem.rsplit_once('/').map_or((None, stem), |(folders, last)| (Some(folders), last));
    let mut path = prefix.to_owned();
    for folder in folders.into_iter().flat_map(|folders| folders.split('/')) {
        path.push('/');
        path.push_str(&segment(folder)?);
    }
    let found = if last == "index" {
        // A path with parameters has no `/` at its end.
        match path.as_str() {
            "" => vec!["/".to_owned()],
            _ if path.contains('{') => vec![path],
            _ => vec![path.clone(), format!("{path}/")],
        }
    } else if last.strip_prefix("[...").and_then(|rest| rest.strip_suffix(']')).is_some_and(is_parameter) {
        if path.contains('{') {
            return Err("`[...]` stands behind no other parameter".to_owned());
        }
        vec![format!("{path}/*")]
    } else {
        vec![format!("{path}/{}", segment(last)?)]
    };
    for pattern in &found {
        pattern.parse::<PathPattern>().map_err(|error| match error.hint {
            Some(hint) => hint,
            None => format!("`{pattern}` is not {}", error.expected),
        })?;
    }
    Ok(found)
}

/// Returns a segment of a path, for a part of a file's path.
fn segment(part: &str) -> Result<String, String> {
    if let Some(parameter) = part.strip_prefix('[').and_then(|part| part.strip_suffix(']')) {
        if is_parameter(parameter) {
            return Ok(format!("{{{parameter}}}"));
        }
        return Err("a parameter's name is made of letters, digits and `_`: `[id].wasm`".to_owned());
    }
    if part.contains(['[', ']']) {
        return Err("a parameter is a whole name: `[id].wasm`".to_owned());
    }
    if part.contains('*') {
        return Err("a name has no `*` in it".to_owned());
    }
    // The normal form, in which the gateway routes.
    let mut out = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(out)
}

fn is_parameter(name: &str) -> bool {
    name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Returns what is the same for patterns that take the same requests.
fn shape(pattern: &str) -> String {
    let blank = |segment: &Segment| match segment {
        Segment::Literal(text) => format!("/{text}"),
        Segment::Parameter(_) => "/{}".to_owned(),
    };
    match pattern.parse() {
        Ok(PathPattern::Template(segments)) => segments.iter().map(blank).collect(),
        _ => pattern.to_owned(),
    }
}

/// Returns a component's name: `users/[id].wasm` is `users._id`, `files/[...path].wasm` is `files._path._`. What cannot be
/// told apart so is told apart by a digest.
fn name(file: &str) -> String {
    let stem = file.strip_suffix(COMPONENT).unwrap_or(file);
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let parts = stem.split('/').map(|part| match part.strip_prefix('[').and_then(|part| part.strip_suffix(']')) {
        Some(parameter) => match parameter.strip_prefix("...") {
            Some(rest) => (format!("_{rest}._"), is_parameter(rest)),
            None => (format!("_{parameter}"), is_parameter(parameter)),
        },
        None => (part.to_owned(), plain(part)),
    });
    let (parts, exact): (Vec<_>, Vec<_>) = parts.unzip();
    let name = parts.join(".");
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= NAME_BYTES_MAX && exact.into_iter().all(|exact| exact) {
        return name;
    }
    let mut legible: String = name
        .chars()
        .filter(|char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.'))
        .skip_while(|char| !char.is_ascii_alphanumeric())
        .take(NAME_BYTES_MAX - "-01234567".len())
        .collect();
    if legible.is_empty() {
        legible.push_str("fn");
    }
    format!("{legible}-{:08x}", xxhash_rust::xxh3::xxh3_64(file.as_bytes()) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, expect: Result<&[&str], &str>) {
        let found = patterns("", file);
        match (&found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{file}"),
            (Err(why), Err(expect)) => assert!(why.contains(expect), "{file}: {why}"),
            _ => panic!("{file}: {found:?}"),
        }
    }

    #[test]
    fn a_files_path_is_its_routes() {
        check("hello.wasm", Ok(&["/hello"]));
        check("index.wasm", Ok(&["/"]));
        check("users/index.wasm", Ok(&["/users", "/users/"]));
        check("users/[id].wasm", Ok(&["/users/{id}"]));
        check("users/[id]/index.wasm", Ok(&["/users/{id}"]));
        check("users/[id]/posts/[post_id].wasm", Ok(&["/users/{id}/posts/{post_id}"]));
        check("files/[...path].wasm", Ok(&["/files/*"]));
        check("[...all].wasm", Ok(&["/*"]));
        check("a b/ü.wasm", Ok(&["/a%20b/%C3%BC"]));
        check("v1.2/feed.json.wasm", Ok(&["/v1.2/feed.json"]));
    }

    #[test]
    fn what_no_path_can_be_made_of_is_told() {
        check("a[id].wasm", Err("a whole name"));
        check("[a-b].wasm", Err("letters, digits"));
        check("[].wasm", Err("letters, digits"));
        check("[id]/[id].wasm", Err("same name"));
        check("[id]/[...rest].wasm", Err("behind no other parameter"));
        check("a*.wasm", Err("no `*`"));
    }

    #[test]
    fn a_prefix_stands_before_everything() {
        assert_eq!(patterns("/api", "index.wasm").unwrap(), ["/api", "/api/"]);
        assert_eq!(patterns("/api", "users/[id].wasm").unwrap(), ["/api/users/{id}"]);
        assert_eq!(Plan::new("/api", [], true).public.as_deref(), Some("/api/*"));
    }

    #[test]
    fn of_two_that_answer_the_same_the_first_does() {
        let files = ["[id].wasm", "[name].wasm", "users.wasm", "users/index.wasm", "[...rest].wasm"];
        let plan = Plan::new("", files, true);
        let served: Vec<_> =
            plan.components.iter().map(|planned| (&*planned.file, planned.patterns.join(" "))).collect();
        let expected = [
            ("[id].wasm", "/{id}".to_owned()),
            ("users.wasm", "/users".to_owned()),
            ("users/index.wasm", "/users/".to_owned()),
            ("[...rest].wasm", "/*".to_owned()),
        ];
        assert_eq!(served, expected);
        assert_eq!(
            plan.complaints,
            [
                "`[name].wasm` does not answer `/{name}`: `[id].wasm` does",
                "`users/index.wasm` does not answer `/users`: `users.wasm` does",
                "`public` does not answer `/*`: `[...rest].wasm` does",
            ]
        );
    }

    #[test]
    fn names_are_legible_and_told_apart() {
        for (file, expected) in [
            ("hello.wasm", "hello"),
            ("users/[id].wasm", "users._id"),
            ("users/index.wasm", "users.index"),
            ("files/[...path].wasm", "files._path._"),
        ] {
            assert_eq!(name(file), expected);
        }
        let files = ["[id].wasm", "id.wasm", "_id.wasm", "a.b.wasm", "a/b.wasm", "a b.wasm", "ü.wasm"];
        let long = format!("{}.wasm", "x".repeat(100));
        let mut names: Vec<_> = files.into_iter().chain([&*long]).map(name).collect();
        for name in &names {
            assert!(name.len() <= NAME_BYTES_MAX && name.as_bytes()[0].is_ascii_alphanumeric(), "{name}");
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), files.len() + 1, "{names:?}");
    }
}
