//! `lockgate serve`

mod app;
mod listing;
mod settings;
mod tree;
mod watch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use lockgate_config::model::{ListenAddress, PathPattern};

use self::app::{App, Setup};
use self::tree::PUBLIC;
use super::Failure;
use super::log::Format;
use super::output::{Table, print};
use super::progress::progress;
use super::run::serve;
use crate::server::{self, Invocation, When};

/// Serve a folder of components and files, without a configuration.
///
/// Each `*.wasm` answers the path that its own path is: `hello.wasm` answers `/hello`, `index.wasm` its folder,
/// `users/[id].wasm` answers `/users/42` and finds `42` in the header `x-lockgate-param-id`, `files/[...path].wasm` answers
/// everything below `/files`. More literal paths go before less literal ones, and longer before shorter. The files of the
/// folder `public` are sent as they are. `NAME.yaml` beside `NAME.wasm` has what a function of a configuration may have,
/// but for `component`: `vars`, `config`, `grants`, `limits`, `isolation`. Relative folders in it start beside it.
///
/// Files may come, change and go meanwhile. What cannot be loaded is told, and its last good version stays.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lockgate serve .
  lockgate serve app --prefix /api --listen 0.0.0.0:8080
  lockgate status --config app/.lockgate/lockgate.yaml      ask it, as any other gateway")]
pub(super) struct Serve {
    /// The folder.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// What stands before all paths, those of `public` included.
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true)]
    prefix: String,
    /// Where to listen: address and port, or `unix:` and the path of a socket.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: ListenAddress,
    /// Where the operator comes in: address and port, or `unix:` and the path of a socket. Default: a socket in the
    /// folder of the state.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<ListenAddress>,
    /// Where the state is put, and the configuration that is written. Default: `.lockgate` in the folder.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// What is experimental and to be served as well.
    #[arg(long, value_name = "NAME", value_enum)]
    experimental: Vec<Experiment>,
    /// As for `run`: how a successor is started.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "now", hide = true)]
    takeover: Option<When>,
}

/// What may change or go with any version.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Experiment {
    /// Functions of WASI 0.3, whose support Wasmtime calls unfinished.
    #[value(name = "wasi-0.3")]
    Wasi03,
}

impl Serve {
    pub(super) fn run(self, log_format: Format) -> Result<(), Failure> {
        let setup = self.setup()?;
        let cannot = |error| Failure::failed(format_args!("`{}`: {error}", setup.state.display()));
        if self.takeover.is_none()
            && let Some(pid) = server::incumbent(&setup.state.join("state"))
        {
            // Before anything is written: that process would take it over.
            let why = format!("process {pid} serves this folder already; give this one its own `--state`");
            return Err(Failure::failed(why));
        }
        let mut app = App::open(setup.clone()).map_err(cannot)?;
        app.update().map_err(cannot)?;
        print(&table(&app, &setup))?;
        watch::start(app, &setup)
            .map_err(|error| Failure::failed(format_args!("cannot start a thread to watch the folder: {error}")))?;
        let options = server::Options {
            invocation: Invocation {
                config: setup.config(),
                pid_file: None,
                log_format: log_format.as_str().to_owned(),
                serve: Some(arguments(&setup)),
            },
            takeover: self.takeover,
            progress: progress(),
        };
        serve(&options)
    }

    fn setup(&self) -> Result<Setup, Failure> {
        if !self.folder.is_dir() {
            return Err(Failure::input(format_args!("`{}` is no folder", self.folder.display())));
        }
        // The configuration is text, and names these.
        let absolute = |path: &Path| {
            let absolute = std::path::absolute(path)
                .map_err(|error| Failure::input(format_args!("`{}` is no path: {error}", path.display())))?;
            match absolute.to_str() {
                Some(_) => Ok(absolute),
                None => Err(Failure::input(format_args!("`{}` is not UTF-8", path.display()))),
            }
        };
        let root = absolute(&self.folder)?;
        let state = match &self.state {
            Some(state) => absolute(state)?,
            None => root.join(".lockgate"),
        };
        if state.parent().is_some_and(|parent| parent.starts_with(root.join(PUBLIC))) || state == root {
            return Err(Failure::input(format_args!(
                "`{}` cannot have the state: what is there is served",
                state.display()
            )));
        }
        let address = |address: &ListenAddress| {
            Ok::<_, Failure>(match address {
                ListenAddress::Unix(path) => ListenAddress::Unix(absolute(path)?).to_string(),
                ListenAddress::Tcp(_) => address.to_string(),
            })
        };
        let admin = match &self.admin {
            Some(admin) => admin.clone(),
            None => ListenAddress::Unix(state.join("admin.sock")),
        };
        let prefix = self.prefix.trim_end_matches('/');
        if let Err(error) = format!("{prefix}/*").parse::<PathPattern>() {
            let hint = error.hint.unwrap_or_else(|| "it begins with `/`: `--prefix /api`".to_owned());
            return Err(Failure::input(format_args!("`{}` is no prefix of paths\nhint: {hint}", self.prefix)));
        }
        let names = self.experimental.iter().filter_map(ValueEnum::to_possible_value);
        Ok(Setup {
            admin: address(&admin)?,
            listen: address(&self.listen)?,
            prefix: prefix.to_owned(),
            experimental: names.map(|name| name.get_name().to_owned()).collect(),
            root,
            state,
        })
    }
}

/// Returns the arguments by which the same folder is served in the same way.
fn arguments(setup: &Setup) -> Vec<OsString> {
    let Setup { root, state, prefix, listen, admin, experimental } = setup;
    let mut arguments: Vec<OsString> = vec![root.into()];
    let options: [(&str, OsString); 4] = [
        ("--state", state.into()),
        ("--prefix", prefix.into()),
        ("--listen", listen.into()),
        ("--admin", admin.into()),
    ];
    for (name, value) in options {
        arguments.extend([name.into(), value]);
    }
    for name in experimental {
        arguments.extend(["--experimental".into(), name.into()]);
    }
    arguments
}

/// Returns the routes as a table.
fn table(app: &App, setup: &Setup) -> String {
    let mut table = Table::new(&["PATH", "ANSWERED BY"]);
    for (path, file) in app.routes() {
        table.row([path, file]);
    }
    let root = setup.root.display();
    match table.is_empty() {
        true => format!("`{root}` has no component and no `public` folder yet: every request is answered with 404"),
        false => format!("{}\n`{root}` is served at {}", table.render(), setup.listen),
    }
}
