//! The least that a Pingora proxy can be: one thread, one upstream, Pingora's defaults for all else. It is what a gateway
//! on Pingora is measured against.
//!
//! Two programs, which differ in the allocator: `bare-pingora` has the system's, `bare-pingora-mimalloc` that of Lockgate.

use std::env;
use std::net::SocketAddr;
use std::process::ExitCode;

use async_trait::async_trait;
use pingora::prelude::*;
use pingora::server::configuration::ServerConf;

struct Bare {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

/// Serves until it is killed, as the two arguments say: the address to listen at, and the upstream's.
pub fn main() -> ExitCode {
    let addresses: Vec<SocketAddr> = env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let [listen, upstream] = addresses[..] else {
        return ExitCode::from(2);
    };
    let mut server = Server::new_with_opt_and_conf(None, ServerConf { threads: 1, ..ServerConf::default() });
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare { upstream });
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run_forever()
}
