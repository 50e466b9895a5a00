//! The settings beside a component, as they stand in the configuration that is written: there, relative folders would start
//! at the folder of the state.

use std::path::{Component, Path, PathBuf};

use lockgate_config::problem::{Place, Source};

use super::app::quoted;

/// Returns settings whose relative folders start at `folder`. Nothing else is changed, and no line begins elsewhere. A path
/// that begins with a variable is taken to be whole.
pub(super) fn rebased(settings: &str, folder: &Path) -> String {
    let source = Source { file: PathBuf::new(), text: settings.into() };
    let places = (0..).map(|index| source.value_place_of(&format!("grants.folders[{index}].path")));
    let mut places: Vec<Place> = places.take_while(|place| place.line > 0).collect();
    if places.is_empty() {
        return settings.to_owned();
    }
    // From the end: what is put in moves what stands behind it.
    places.sort_unstable_by_key(|place| std::cmp::Reverse((place.line, place.column)));
    let mut lines: Vec<String> = settings.lines().map(str::to_owned).collect();
    for place in places {
        let Some(line) = lines.get_mut(place.line as usize - 1) else { continue };
        let byte = |column: u32| line.char_indices().nth(column as usize).map_or(line.len(), |(index, _)| index);
        let written = byte(place.column - 1)..byte(place.column - 1 + place.length);
        if let Some(path) = relative(&line[written.clone()]) {
            let path: PathBuf = Path::new(path).components().filter(|part| *part != Component::CurDir).collect();
            let whole = format!("{}/{}", quoted(&folder.to_string_lossy()).trim_end_matches('"'), path.display());
            line.replace_range(written, &format!("{whole}\""));
        }
    }
    lines.join("\n")
}

/// Returns what a scalar says, if it is a relative path without anything that has to be read as YAML.
fn relative(scalar: &str) -> Option<&str> {
    let inner = ['"', '\''].into_iter().find_map(|quote| scalar.strip_prefix(quote)?.strip_suffix(quote));
    let path = inner.unwrap_or(scalar);
    (!path.is_empty() && !path.starts_with(['/', '$']) && !path.contains(['"', '\'', '\\'])).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_folders_start_beside_the_component_and_nothing_else_moves() {
        for (written, expected) in [
            ("vars: { A: ./data }\n", "vars: { A: ./data }\n"),
            (
                "grants:\n  folders:\n    - path: ./data # its own\n      as: /data\n    - { as: /b, path: \"b c\" }",
                "grants:\n  folders:\n    - path: \"/app/users/data\" # its own\n      as: /data\n    - { as: /b, path: \"/app/users/b c\" }",
            ),
            (
                "grants: { folders: [{ path: a, as: /a }, { path: ../b, as: /b }] }",
                "grants: { folders: [{ path: \"/app/users/a\", as: /a }, { path: \"/app/users/../b\", as: /b }] }",
            ),
            (
                "grants: { folders: [{ path: /a, as: /a }, { path: \"${B}/c\", as: /b }] }",
                "grants: { folders: [{ path: /a, as: /a }, { path: \"${B}/c\", as: /b }] }",
            ),
            (
                "grants: { folders: [{ path: \"a/${B}\", as: /a }] }",
                "grants: { folders: [{ path: \"/app/users/a/${B}\", as: /a }] }",
            ),
            ("grants: [", "grants: ["),
        ] {
            assert_eq!(rebased(written, Path::new("/app/users")), expected);
        }
    }
}
