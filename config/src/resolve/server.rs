//! `server` and `admin`.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use super::Resolver;
use crate::file;
use crate::model::{Admin, ListenAddress, Listener, RequestLimits, Server};
use crate::problem::{Place, Problem};
use crate::tree::Node;
use crate::units::ByteSize;

/// Bounds of `server.instance_memory`: one page of WebAssembly, and all that 32-bit memories can have.
pub(super) const MEMORY_MIN: ByteSize = ByteSize::kib(64);
const MEMORY_MAX: ByteSize = ByteSize::gib(4);

/// Bounds of `server.limits.header_bytes`: a small request, and what Pingora's parser stops at.
const HEADER_BYTES_MIN: ByteSize = ByteSize::kib(1);
const HEADER_BYTES_MAX: ByteSize = ByteSize::mib(1);

/// Bytes of a socket's path that the system takes.
const SOCKET_PATH_MAX: usize = 107;

impl Resolver<'_> {
    pub(super) fn server(&mut self, server: file::Server, node: &Node) -> Server {
        let instance_memory = server.instance_memory.0;
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&instance_memory) {
            let place = node.at("instance_memory").place.clone();
            let problem = Problem::new("no instance can have this much memory", place);
            self.problem(problem.label(format!("expected {MEMORY_MIN} to {MEMORY_MAX}")));
        }
        let header_bytes = server.limits.header_bytes.0;
        if !(HEADER_BYTES_MIN..=HEADER_BYTES_MAX).contains(&header_bytes) {
            let place = node.at("limits").at("header_bytes").place.clone();
            let problem = Problem::new("no limit for headers can be this", place);
            self.problem(problem.label(format!("expected {HEADER_BYTES_MIN} to {HEADER_BYTES_MAX}")));
        }
        let dir =
            |dir: Option<_>, default: &str| dir.map_or_else(|| self.base_dir.join(default), |dir| self.path(&dir));
        Server {
            threads: match server.threads {
                Some(threads) => threads.0.0 as usize,
                None => available_parallelism().map_or(1, usize::from),
            },
            compile_threads: server.compile_threads.0.0 as usize,
            state_dir: dir(server.state_dir, "state"),
            cache_dir: dir(server.cache_dir, "cache"),
            cache_size: server.cache_size.0,
            instances: server.instances.0.0,
            instance_memory,
            key_value: self.store(server.key_value, node),
            drain: server.drain.0,
            drain_tunnels: server.drain_tunnels.unwrap_or(server.drain).0,
            watch: server.watch.0,
            access_log: self.access_log(server.access_log, node.at("access_log")),
            trusted_proxies: server.trusted_proxies.iter().map(|network| network.0).collect(),
            limits: RequestLimits {
                body: server.limits.body.map(|size| size.0),
                requests: server.limits.requests.map(|requests| requests.0.0),
                read_timeout: server.limits.read_timeout.0.0,
                write_timeout: server.limits.write_timeout.0.0,
                idle_timeout: server.limits.idle_timeout.0.0,
                tunnel_idle_timeout: server.limits.tunnel_idle_timeout.0.0,
                body_rate: server.limits.body_rate.0,
                headers: server.limits.headers.0.0,
                header_bytes,
                requests_per_connection: server.limits.requests_per_connection.0.0,
                http2_streams: server.limits.http2_streams.0.0,
                connections: server.limits.connections.0.0,
                connections_per_address: server.limits.connections_per_address.0.0,
            },
            error_pages: self.error_pages(server.error_pages, node.at("error_pages")),
            require_approval: server.require_approval == file::RequireApproval::Grants,
        }
    }

    pub(super) fn admin(&mut self, admin: file::Admin, tree: &Node, listeners: &[Listener]) -> Admin {
        let node = tree.at("admin");
        let place = || match tree.get("admin") {
            Some(node) => node.at("address").place.clone(),
            None => Place::none(),
        };
        let address = match admin.address.0 {
            ListenAddress::Tcp(address) => {
                self.check_admin_address(address, admin.token.is_some() || node.damaged, listeners, place);
                ListenAddress::Tcp(address)
            }
            ListenAddress::Unix(path) => ListenAddress::Unix(self.socket(&path, place)),
        };
        Admin { address, token: admin.token.map(|token| token.0) }
    }

    /// Returns where a socket is, which must be a path that the system takes.
    pub(super) fn socket(&mut self, path: &Path, place: impl Fn() -> Place) -> PathBuf {
        let path = self.base_dir.join(path);
        if path.as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
            let problem = Problem::new("the path of the socket is too long", place());
            let label = format!("at most {SOCKET_PATH_MAX} bytes with its folder");
            self.problem(problem.label(label).hint("`/run/lockgate/admin.sock` is a good one"));
        }
        path
    }

    fn check_admin_address(
        &mut self,
        address: SocketAddr,
        guarded: bool,
        listeners: &[Listener],
        place: impl Fn() -> Place,
    ) {
        if !address.ip().is_loopback() && !guarded {
            let message = "the admin API is open to the network, without a token";
            let hint = "set `admin.token: \"${LOCKGATE_TOKEN}\"`, or listen on `127.0.0.1:9901` or on a Unix socket";
            let label = "neither loopback nor a Unix socket";
            self.problem(Problem::new(message, place()).label(label).hint(hint));
        }
        if address.port() != 0 && listeners.iter().any(|listener| listener.address == ListenAddress::Tcp(address)) {
            let message = format!("`{address}` is both a listener's and the admin's address");
            let hint = "choose another port for one of them";
            self.problem(Problem::new(message, place()).hint(hint));
        }
    }
}
