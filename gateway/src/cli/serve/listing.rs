//! What is in the folder of an application: its components, and whether it has files that are sent as they are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::tree::{COMPONENT, PUBLIC, SETTINGS};

/// How deep folders are looked into.
const DEPTH_MAX: usize = 16;

/// Components of an application. Far above any that we have seen; a folder with more was not meant.
const COMPONENTS_MAX: usize = 1_000;

/// What is in a folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// Paths in the folder, with `/` between their parts.
    pub(super) components: BTreeSet<String>,
    /// Whether there is a folder of files that are sent as they are.
    pub(super) has_public: bool,
    /// What is not looked at, and why.
    pub(super) complaints: Vec<String>,
}

impl Listing {
    /// Lists a folder. What begins with a dot is not looked at, nor where links to folders lead.
    pub(super) fn of(root: &Path) -> Self {
        let mut listing = Self { has_public: root.join(PUBLIC).is_dir(), ..Self::default() };
        let mut settings = BTreeSet::new();
        listing.enter(root, "", 0, &mut settings);
        for stem in settings {
            if !listing.components.contains(&format!("{stem}{COMPONENT}")) {
                listing.complaints.push(format!("`{stem}{SETTINGS}` stands beside no `{COMPONENT}` of its name"));
            }
        }
        if listing.components.len() > COMPONENTS_MAX {
            let left: Vec<_> = listing.components.iter().skip(COMPONENTS_MAX).cloned().collect();
            let count = left.len();
            for file in left {
                listing.components.remove(&file);
            }
            listing.complaints.push(format!("{count} components are left out: {COMPONENTS_MAX} are served at most"));
        }
        listing
    }

    fn enter(&mut self, folder: &Path, below: &str, depth: usize, settings: &mut BTreeSet<String>) {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                self.complaints.push(format!("`{}` cannot be listed: {error}", folder.display()));
                return;
            }
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                self.complaints.push(format!("`{}` is left out: its name is not UTF-8", entry.path().display()));
                continue;
            };
            if name.starts_with('.') || (below.is_empty() && name == PUBLIC) {
                continue;
            }
            let path = format!("{below}{name}");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if depth < DEPTH_MAX {
                    self.enter(&entry.path(), &format!("{path}/"), depth + 1, settings);
                }
            } else if name.ends_with(COMPONENT) {
                self.components.insert(path);
            } else if let Some(stem) = path.strip_suffix(SETTINGS) {
                settings.insert(stem.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["index.wasm", "index.yaml", "users/[id].wasm", "users/notes.txt", "lost.yaml", ".git/x.wasm"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        fs::create_dir(dir.path().join("public")).unwrap();
        fs::write(dir.path().join("public/page.wasm"), "").unwrap();
        let listing = Listing::of(dir.path());
        assert_eq!(listing.components.iter().collect::<Vec<_>>(), ["index.wasm", "users/[id].wasm"]);
        assert!(listing.has_public);
        assert_eq!(listing.complaints, ["`lost.yaml` stands beside no `.wasm` of its name"]);
    }
}
