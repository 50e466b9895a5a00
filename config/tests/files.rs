//! Each file in `tests/valid` and `examples` is accepted, and each in `tests/invalid` gets the message that stands
//! beside it. After a change of wording, `BLESS=1 cargo test -p lockgate-config --test files` writes them anew.

use std::fs;
use std::path::{Path, PathBuf};

use lockgate_config::problem::Source;
use lockgate_config::{dump, parse};

const SECRET: &str = "hunter2";

fn env(name: &str) -> Option<String> {
    matches!(name, "SECRET" | "TOKEN").then(|| SECRET.to_owned())
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml");
    let mut files: Vec<_> = entries.filter(is_yaml).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn source(path: &Path) -> Source {
    let file = path.file_name().unwrap().into();
    Source { file, text: fs::read_to_string(path).unwrap().into() }
}

#[test]
fn an_invalid_file_gets_its_message() {
    for path in files("tests/invalid") {
        let report = parse(source(&path), Path::new("/etc/lockgate"), &env);
        let shown = match report {
            Ok(_) => panic!("{} is accepted", path.display()),
            Err(report) => format!("{report}\n"),
        };
        assert!(!shown.contains(SECRET), "{}: a variable's value is shown:\n{shown}", path.display());
        let expected = path.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &shown).unwrap();
        }
        assert_eq!(shown, fs::read_to_string(&expected).unwrap_or_default(), "{}", path.display());
    }
}

#[test]
fn a_valid_file_is_accepted_and_its_dump_means_the_same() {
    for path in files("tests/valid").into_iter().chain(files("examples")) {
        let config = parse(source(&path), Path::new("/etc/lockgate"), &env)
            .unwrap_or_else(|report| panic!("{}\n{report}", path.display()));
        let dumped = dump(&config);
        let text = serde_json::to_string_pretty(&dumped).unwrap();
        assert!(!text.contains(SECRET), "{}: a secret is in the dump:\n{text}", path.display());
        let again = Source { file: "dump".into(), text: text.into() };
        let again = parse(again, Path::new("/"), &env).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(dump(&again), dumped, "{}", path.display());
    }
}
