//! What systemd is told, over a socket as it has one.

mod harness;

use std::time::Duration;

use harness::{Builder, Gateway, Successor, Upstream};
use rustix::process::Signal;
use tokio::net::UnixDatagram;

const CONFIG: &str = r#"
server: { drain: 5s, watch: false }
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;

/// The service manager's end.
struct Manager(UnixDatagram);

impl Manager {
    async fn start(up: &Upstream, variables: &[(&str, &str)]) -> (Self, Gateway) {
        let mut builder = Builder::new(CONFIG).upstream(up);
        let socket = builder.path().join("notify.sock");
        let manager = Self(UnixDatagram::bind(&socket).unwrap());
        builder = builder.variable("NOTIFY_SOCKET", socket.to_str().unwrap());
        for (name, value) in variables {
            builder = builder.variable(name, value);
        }
        (manager, builder.start().await)
    }

    /// The next message that begins so; what comes before is not looked at.
    async fn hears(&self, beginning: &str) -> String {
        let hear = async {
            let mut buffer = [0; 4096];
            loop {
                let length = self.0.recv(&mut buffer).await.unwrap();
                let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
                if message.starts_with(beginning) {
                    return message;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), hear).await.unwrap_or_else(|_| panic!("no `{beginning}`"))
    }
}

#[tokio::test]
async fn it_is_told_of_the_beginning_of_reloads_and_of_the_end() {
    let up = Upstream::start().await;
    let (manager, mut gateway) = Manager::start(&up, &[]).await;
    assert_eq!(manager.hears("READY=1").await, "READY=1\nSTATUS=serving, generation 1");

    gateway.write_config(&CONFIG.replace("drain: 5s", "drain: 6s"));
    gateway.signal(Signal::HUP);
    let reloading = manager.hears("RELOADING=1").await;
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(micros.parse::<u64>().is_ok_and(|micros| micros > 0), "{reloading}");
    assert_eq!(manager.hears("READY=1").await, "READY=1\nSTATUS=serving, generation 2");

    gateway.signal(Signal::TERM);
    assert_eq!(manager.hears("STOPPING=1").await, "STOPPING=1\nSTATUS=draining");
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn a_reload_that_is_refused_is_over_as_well() {
    let up = Upstream::start().await;
    let (manager, gateway) = Manager::start(&up, &[]).await;
    manager.hears("READY=1").await;
    gateway.write_config("routes: [{ upstream: nobody }]");
    gateway.signal(Signal::HUP);
    manager.hears("RELOADING=1").await;
    assert_eq!(manager.hears("READY=1").await, "READY=1\nSTATUS=serving, generation 1");
}

#[tokio::test]
async fn it_is_told_which_process_goes_on_and_that_one_feeds_its_watchdog() {
    let up = Upstream::start().await;
    let (manager, mut gateway) = Manager::start(&up, &[("WATCHDOG_USEC", "200000")]).await;
    manager.hears("READY=1").await;
    manager.hears("WATCHDOG=1").await;
    let Successor(pid) = &gateway.upgrade().await;
    assert_eq!(manager.hears("MAINPID=").await, format!("MAINPID={pid}"));
    assert!(gateway.ended().await.success());
    // All of the predecessor's messages have been sent: those that follow are the successor's.
    let mut waiting = [0; 4096];
    while manager.0.try_recv(&mut waiting).is_ok() {}
    manager.hears("WATCHDOG=1").await;
}
