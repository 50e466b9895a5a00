//! Who is compared, and how each is started.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockgate_guests::Guest;

use crate::Result;
use crate::tools::Tools;

/// A proxy in one configuration. Each has one thread for requests, keeps connections on both sides, and has the same
/// upstream. Lockgate writes an access log and counts metrics; the others write no log, which is in their favour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// With the guest `read-set`, as often as there are filters.
    Lockgate { filters: usize, isolation: Isolation },
    /// With a guest in the origin's place.
    Function { wasi: Wasi, isolation: Isolation },
    /// `wasmtime serve` with the same guest. Its instances serve one request each, or many.
    Wasmtime { wasi: Wasi, isolation: Isolation },
    /// Nothing but Pingora.
    Pingora { mimalloc: bool },
    /// As Debian builds it.
    Nginx,
    /// With `proxy-wasm-filter`, which does what `read-set` does, as often as there are filters.
    Envoy { filters: usize },
}

/// How long an instance of a filter lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    Request,
    Reused,
}

impl Isolation {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Reused => "reused",
        }
    }
}

/// What a function is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wasi {
    /// A `proxy` of 0.2: the guest `hello`.
    Two,
    /// A `service` of 0.3: the guest `service`.
    Three,
}

impl Wasi {
    const ALL: [Self; 2] = [Self::Two, Self::Three];

    const fn guest(self) -> Guest {
        match self {
            Self::Two => Guest::Hello,
            Self::Three => Guest::Service,
        }
    }

    /// What stands in the name of a contender.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Two => "",
            Self::Three => "-0.3",
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lockgate { filters: 0, .. } => f.write_str("lockgate"),
            Self::Lockgate { filters, isolation } => {
                write!(f, "lockgate-{filters}-{}", isolation.as_str())
            }
            Self::Function { wasi, isolation } => {
                write!(f, "lockgate-function{}-{}", wasi.suffix(), isolation.as_str())
            }
            Self::Wasmtime { wasi, isolation } => write!(f, "wasmtime-serve{}-{}", wasi.suffix(), isolation.as_str()),
            Self::Pingora { mimalloc: false } => f.write_str("pingora"),
            Self::Pingora { mimalloc: true } => f.write_str("pingora-mimalloc"),
            Self::Nginx => f.write_str("nginx"),
            Self::Envoy { filters: 0 } => f.write_str("envoy"),
            Self::Envoy { filters } => write!(f, "envoy-{filters}"),
        }
    }
}

impl Contender {
    /// Returns all of them, in the order of the table.
    pub(crate) fn all() -> Vec<Self> {
        use Isolation::{Request, Reused};
        let lockgate = |(filters, isolation)| Self::Lockgate { filters, isolation };
        let mut all = vec![Self::Nginx, Self::Pingora { mimalloc: false }, Self::Pingora { mimalloc: true }];
        all.extend(
            [(0, Request), (1, Reused), (3, Reused), (5, Reused), (1, Request), (3, Request), (5, Request)]
                .map(lockgate),
        );
        all.extend([0, 1, 3].map(|filters| Self::Envoy { filters }));
        for wasi in Wasi::ALL {
            all.extend([Request, Reused].map(|isolation| Self::Function { wasi, isolation }));
            all.extend([Request, Reused].map(|isolation| Self::Wasmtime { wasi, isolation }));
        }
        all
    }

    /// Returns how many filters each request passes.
    pub(crate) const fn filters(self) -> usize {
        match self {
            Self::Lockgate { filters, .. } | Self::Envoy { filters } => filters,
            Self::Function { .. } | Self::Wasmtime { .. } | Self::Pingora { .. } | Self::Nginx => 0,
        }
    }

    /// Returns the command that serves in the foreground, its configuration written into `dir`.
    pub(crate) fn command(self, tools: &Tools, dir: &Path, listen: SocketAddr, origin: SocketAddr) -> Result<Command> {
        match self {
            Self::Lockgate { filters, isolation } => {
                let config = write(dir, "lockgate.yaml", &lockgate_yaml(dir, listen, origin, filters, isolation))?;
                Ok(command(&tools.lockgate, [OsStr::new("run"), OsStr::new("--config"), config.as_os_str()]))
            }
            Self::Function { wasi, isolation } => {
                let config = write(dir, "lockgate.yaml", &function_yaml(dir, listen, wasi, isolation))?;
                Ok(command(&tools.lockgate, [OsStr::new("run"), OsStr::new("--config"), config.as_os_str()]))
            }
            Self::Wasmtime { wasi, isolation } => {
                let program = tools.wasmtime.as_deref().ok_or("wasmtime has gone")?;
                let requests = if isolation == Isolation::Reused { "10000" } else { "1" };
                let address = listen.to_string();
                let mut command =
                    command(program, ["serve", "--addr", &*address, "--max-instance-reuse-count", requests]);
                // What Rust's standard library imports is not there by default.
                command.arg("-Scli=y");
                if wasi == Wasi::Three {
                    command.args(["-Wcomponent-model-async=y", "-Sp3=y"]);
                }
                command.arg(wasi.guest().path()).env("TOKIO_WORKER_THREADS", "1");
                Ok(command)
            }
            Self::Pingora { mimalloc } => {
                let program = if mimalloc { &tools.pingora_mimalloc } else { &tools.pingora };
                Ok(command(program, [listen.to_string(), origin.to_string()]))
            }
            Self::Nginx => nginx(tools, dir, &nginx_proxy(listen, origin)),
            Self::Envoy { filters } => {
                let program = tools.envoy.as_deref().ok_or("envoy has gone")?;
                let filter = tools.proxy_wasm_filter.as_deref().unwrap_or(Path::new(""));
                let config = write(dir, "envoy.yaml", &envoy_yaml(filter, listen, origin, filters))?;
                let mut command =
                    command(program, ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
                command.arg("--config-path").arg(config);
                Ok(command)
            }
        }
    }
}

/// Returns the command for an nginx that is one process, with the given `http` section.
pub(crate) fn nginx(tools: &Tools, dir: &Path, http: &str) -> Result<Command> {
    let program = tools.nginx.as_deref().ok_or("nginx has gone")?;
    let config = write(
        dir,
        "nginx.conf",
        &format!(
            "daemon off;
# One process: the one that is measured, and killed at the end.
master_process off;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
{http}}}
"
        ),
    )?;
    Ok(command(program, [OsStr::new("-p"), dir.as_os_str(), OsStr::new("-c"), config.as_os_str()]))
}

fn nginx_proxy(listen: SocketAddr, origin: SocketAddr) -> String {
    format!(
        "    upstream origin {{
        server {origin};
        keepalive 128;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
    }}
"
    )
}

fn lockgate_yaml(dir: &Path, listen: SocketAddr, origin: SocketAddr, filters: usize, isolation: Isolation) -> String {
    // The access log goes to stdout, which is `/dev/null`.
    let mut yaml = format!(
        "listeners: [ \"{listen}\" ]
admin: {{ address: \"unix:{}\" }}
server: {{ threads: 1, watch: false, access_log: stdout }}
upstreams: {{ origin: [ \"{origin}\" ] }}
",
        dir.join("admin.sock").display()
    );
    let names: Vec<String> = (1..=filters).map(|number| format!("read-set-{number}")).collect();
    if !names.is_empty() {
        yaml.push_str("filters:\n");
    }
    let component = Guest::ReadSet.path();
    let component = component.display();
    let isolation = isolation.as_str();
    for name in &names {
        // Writing to a string does not fail.
        let _ = writeln!(yaml, "  {name}: {{ component: \"{component}\", isolation: {isolation} }}");
    }
    let _ = writeln!(yaml, "routes: [ {{ name: all, filters: [ {} ], upstream: origin }} ]", names.join(", "));
    yaml
}

fn function_yaml(dir: &Path, listen: SocketAddr, wasi: Wasi, isolation: Isolation) -> String {
    let experimental = if wasi == Wasi::Three { "experimental: [wasi-0.3]\n" } else { "" };
    format!(
        "listeners: [ \"{listen}\" ]
admin: {{ address: \"unix:{}\" }}
server: {{ threads: 1, watch: false, access_log: stdout }}
{experimental}functions: {{ hello: {{ component: \"{}\", isolation: {} }} }}
routes: [ {{ name: all, function: hello }} ]
",
        dir.join("admin.sock").display(),
        wasi.guest().path().display(),
        isolation.as_str()
    )
}

fn envoy_yaml(filter: &Path, listen: SocketAddr, origin: SocketAddr, filters: usize) -> String {
    let mut chain = String::new();
    for number in 1..=filters {
        // Writing to a string does not fail.
        let _ = write!(
            chain,
            "
          - name: read-set-{number}
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
              config:
                name: read-set-{number}
                vm_config: {{ runtime: envoy.wasm.runtime.v8, code: {{ local: {{ filename: \"{}\" }} }} }}",
            filter.display()
        );
    }
    format!(
        "static_resources:
  listeners:
  - name: main
    address: {{ socket_address: {{ address: {}, port_value: {} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          codec_type: HTTP1
          route_config:
            virtual_hosts:
            - {{ name: all, domains: [\"*\"], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: origin }} }}] }}
          http_filters:{chain}
          - name: envoy.filters.http.router
            typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: origin
    type: STATIC
    load_assignment:
      cluster_name: origin
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}
",
        listen.ip(),
        listen.port(),
        origin.ip(),
        origin.port()
    )
}

fn command<A: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).map_err(|error| format!("cannot write `{}`: {error}", path.display()))?;
    Ok(path)
}
