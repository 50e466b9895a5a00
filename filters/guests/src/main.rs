//! Builds guests and copies them into a folder, by their names: `lockgate-guests [--library] FOLDER`.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use lockgate_guests::Guest;

const USAGE: &str = "usage: lockgate-guests [--library] FOLDER

Builds the guests and copies them to FOLDER, each as NAME.wasm.

  --library  only the first-party filters, not the tests' fixtures
";

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]
fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (guests, folder) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["-h" | "--help"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        ["--library", folder] | [folder, "--library"] => (Guest::LIBRARY, folder),
        [folder] if !folder.starts_with('-') => (Guest::ALL, folder),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match copy(guests, Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn copy(guests: &[Guest], folder: &Path) -> Result<(), String> {
    lockgate_guests::build().map_err(|error| error.to_string())?;
    let failed = |path: &Path, error| format!("could not write `{}`: {error}", path.display());
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    for guest in guests {
        let (path, partial) = (folder.join(guest.name()).with_extension("wasm"), folder.join(guest.name()));
        // By renaming: a gateway may watch the folder, and must never see half a component.
        fs::copy(guest.path(), &partial)
            .and_then(|_| fs::rename(&partial, &path))
            .map_err(|error| failed(&path, error))?;
    }
    Ok(())
}
