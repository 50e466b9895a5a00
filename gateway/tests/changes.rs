//! Certificate and configuration change a hundred times while requests come in, and no request notices.

mod harness;

use std::sync::Arc;

use harness::tls::Authority;
use harness::{Builder, Load, Upstream};

const CHANGES: usize = 100;

fn config(change: usize) -> String {
    format!(
        r#"
server: {{ watch: false }}
listeners:
  - {{ address: "127.0.0.1:0", tls: {{ certificates: [{{ cert: default.pem, key: default.key }}] }} }}
upstreams: {{ app: ["${{UPSTREAM}}"] }}
routes: [{{ upstream: app, headers: {{ response: {{ set: {{ x-change: "{change}" }} }} }} }}]
"#
    )
}

#[tokio::test]
async fn a_hundred_certificates_and_configurations_under_load_fail_no_request() {
    let (up, authority) = (Upstream::start().await, Arc::new(Authority::new()));
    let builder = Builder::new(&config(0)).upstream(&up);
    authority.issue(&["example.com"]).write(builder.path(), "default");
    let gateway = builder.start().await;
    let address = gateway.http();
    let mut load = Load::new();
    for protocol in ["h2", "http/1.1"] {
        load.tls(protocol, 4, &authority, address, "example.com");
    }
    // Connections that were made before the first change and live through all of them.
    let mut kept = [
        authority.client().connect(address, "example.com").await,
        authority.client().alpn(&["http/1.1"]).connect(address, "example.com").await,
    ];
    let mut last = kept[0].certificate.clone();
    let asked = |load: &Load| ["h2", "http/1.1"].map(|protocol| load.tally(protocol).asked());
    let before = asked(&load);

    for change in 1..=CHANGES {
        authority.issue(&["example.com"]).write(gateway.path(), "default");
        gateway.write_config(&config(change));
        let reply = gateway.reload().await;
        assert!(reply.status.is_success(), "{}", reply.text());

        let mut fresh = authority.client().connect(address, "example.com").await;
        assert_ne!(fresh.certificate, last, "the reload has answered, and the old certificate is still shown");
        last.clone_from(&fresh.certificate);
        for connected in kept.iter_mut().chain([&mut fresh]) {
            let reply = connected.get("/text/b").await.expect("a connection that stays");
            assert_eq!((reply.text().as_str(), reply.header("x-change")), ("b", change.to_string().as_str()));
        }
    }

    let after = asked(&load);
    assert!(before.iter().zip(&after).all(|(before, after)| after - before >= CHANGES), "{before:?} {after:?}");
    load.ends_without_a_failure().await;
    assert_eq!(gateway.metric("lockgate_generation", &[]).await, (1 + CHANGES) as f64);
}
