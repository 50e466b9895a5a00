//! `lockgate demo`

mod origin;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use super::log::Format;
use super::output::print;
use super::progress::progress;
use super::run::serve;
use crate::server::{self, Invocation};

/// Run a gateway with an embedded origin, two filters and a 20 % canary, to play with.
///
/// Writes a configuration and serves it. The file is watched: edit a weight or a setting, and see it act.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Where the configuration, the state and the cache are put. A configuration that is there is replaced.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    dir: PathBuf,
    /// Where `headers.wasm` and `access.wasm` are.
    #[arg(long, value_name = "DIR", default_value = "target/library")]
    components: PathBuf,
    /// The port of the gateway, on loopback.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// The port of the admin API, on loopback.
    #[arg(long, value_name = "PORT", default_value_t = 9901)]
    admin_port: u16,
}

/// The filters of the demo.
const COMPONENTS: [&str; 2] = ["access.wasm", "headers.wasm"];

impl Demo {
    pub(super) fn run(self, log_format: Format) -> Result<(), Failure> {
        for component in COMPONENTS {
            let path = self.components.join(component);
            if !path.is_file() {
                return Err(Failure::input(format_args!(
                    "there is no `{}`\nhint: `make demo` builds the filters first; by hand it is `cargo run -p \
                     lockgate-guests -- --library {}`",
                    path.display(),
                    self.components.display()
                )));
            }
        }
        Self::is_free(self.port, "--port")?;
        Self::is_free(self.admin_port, "--admin-port")?;
        let origin = origin::start()?;
        let config = self.write_config(origin)?;
        print(&self.tour(&config))?;
        let options = server::Options {
            invocation: Invocation { config, pid_file: None, log_format: log_format.as_str().to_owned(), serve: None },
            takeover: None,
            progress: progress(),
        };
        serve(&options)
    }

    /// Asked before anything is loaded, so that the answer comes at once and names the option.
    fn is_free(port: u16, option: &str) -> Result<(), Failure> {
        match TcpListener::bind(loopback(port)) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::failed(format_args!(
                "port {port} cannot be used: {error}\nhint: choose another with `{option}`"
            ))),
        }
    }

    fn write_config(&self, origin: SocketAddr) -> Result<PathBuf, Failure> {
        let system = |what: String| move |error| Failure::failed(format_args!("cannot {what}: {error}"));
        let absolute = |path: &Path| std::path::absolute(path).map_err(system(format!("find `{}`", path.display())));
        let dir = absolute(&self.dir)?;
        let components = absolute(&self.components)?;
        std::fs::create_dir_all(&dir).map_err(system(format!("make `{}`", dir.display())))?;
        for component in COMPONENTS {
            let copy = dir.join(component);
            std::fs::copy(components.join(component), &copy).map_err(system(format!("write `{}`", copy.display())))?;
        }
        let path = dir.join("lockgate.yaml");
        let text = CONFIG
            .replace("{port}", &self.port.to_string())
            .replace("{admin_port}", &self.admin_port.to_string())
            .replace("{origin}", &origin.to_string());
        std::fs::write(&path, text).map_err(system(format!("write `{}`", path.display())))?;
        Ok(path)
    }

    fn tour(&self, config: &Path) -> String {
        let config = config.strip_prefix(std::env::current_dir().unwrap_or_default()).unwrap_or(config);
        // What it was started as: there may be no `lockgate` on the path.
        let lockgate = std::env::args().next().unwrap_or_else(|| "lockgate".to_owned());
        TOUR.replace("{lockgate}", &lockgate)
            .replace("{url}", &format!("http://{}", loopback(self.port)))
            .replace("{admin}", &format!("http://{}", loopback(self.admin_port)))
            .replace("{admin_address}", &loopback(self.admin_port).to_string())
            .replace("{config}", &config.display().to_string())
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const CONFIG: &str = include_str!("demo/lockgate.yaml");

const TOUR: &str = include_str!("demo/tour.txt");
