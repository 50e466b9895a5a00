//! A set of paths, by exact path and by prefix.

use crate::prefixes::Prefixes;

/// Paths: `/a` is that path, `/a/*` is `/a` and all below it.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    exact: Vec<Box<str>>,
    below: Prefixes,
}

impl Paths {
    /// Reads paths; `problem` gets the index of each that is none.
    pub(crate) fn read(entries: &[String], problem: &mut dyn FnMut(usize, String)) -> Self {
        let (mut exact, mut below) = (Vec::new(), Vec::new());
        for (index, entry) in entries.iter().enumerate() {
            let (path, with_all_below) = match entry.strip_suffix("/*") {
                Some(path) => (path, true),
                None => (entry.as_str(), false),
            };
            if !entry.starts_with('/') {
                problem(index, format!("`{entry}` does not start with `/`"));
            } else if path.contains('*') {
                problem(index, format!("`{entry}`: a `*` can stand at the end only, after a `/`"));
            } else if path.contains(['?', '#']) {
                problem(index, format!("`{entry}`: the path that is compared has no query: leave out `?` and `#`"));
            } else {
                if with_all_below {
                    below.push(format!("{path}/").into_bytes());
                }
                exact.push(path.into());
            }
        }
        exact.sort_unstable();
        exact.dedup();
        Self { exact, below: below.into_iter().collect() }
    }

    /// Tells whether the path, normalised and without its query, is in the set.
    pub(crate) fn contain(&self, path: &str) -> bool {
        self.below.begin(path.as_bytes()) || self.exact.binary_search_by(|exact| (**exact).cmp(path)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entries: &[&str]) -> (Paths, Vec<String>) {
        let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
        let mut problems = Vec::new();
        let paths = Paths::read(&entries, &mut |_, problem| problems.push(problem));
        (paths, problems)
    }

    #[test]
    fn an_exact_path_is_that_path() {
        let (paths, _) = read(&["/a", "/b/", "/"]);
        assert!(["/a", "/b/", "/"].iter().all(|path| paths.contain(path)));
        assert!(!["/a/", "/b", "/ab", "/A", ""].iter().any(|path| paths.contain(path)));
    }

    #[test]
    fn a_star_is_the_path_and_all_below_it() {
        let (paths, _) = read(&["/a/*", "/b/c/*"]);
        assert!(["/a", "/a/", "/a/x", "/a/x/y", "/b/c"].iter().all(|path| paths.contain(path)));
        assert!(!["/ab", "/b", "/b/cd", "/"].iter().any(|path| paths.contain(path)));
        assert!(read(&["/*"]).0.contain("/anything"));
    }

    #[test]
    fn what_is_no_path_is_refused_with_a_reason() {
        let (_, problems) = read(&["a", "*", "/a*", "/*/b", "/a?b=c"]);
        assert_eq!(
            problems,
            [
                "`a` does not start with `/`",
                "`*` does not start with `/`",
                "`/a*`: a `*` can stand at the end only, after a `/`",
                "`/*/b`: a `*` can stand at the end only, after a `/`",
                "`/a?b=c`: the path that is compared has no query: leave out `?` and `#`",
            ]
        );
    }
}
