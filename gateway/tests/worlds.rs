//! What holds for functions of every world alike: 0.2, 0.3, programs, and what stands behind a middleware. Through the real
//! binary.

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use harness::{Builder, Gateway, Upstream};
use http_body_util::StreamBody;
use lockgate_guests::Guest;
use reqwest::{Body, Client, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What answers, with the key of its route. All of them know the same paths.
const FUNCTION: World = World("function", "function: fn");
const SERVICE: World = World("service", "function: fn");
const PROGRAM: World = World("cgi", "function: fn");
const BEHIND: World = World("function", "filters: [{ function: mid }], function: fn");

#[derive(Clone, Copy)]
struct World(&'static str, &'static str);

impl World {
    /// Starts a gateway before it, with these settings of the server.
    async fn start(self, server: &str, limits: &str) -> Gateway {
        let Self(component, route) = self;
        let config = format!(
            "experimental: [wasi-0.3]\nserver: {{ {server} }}\nfunctions:\n  \
             fn: {{ component: filters/{component}.wasm, limits: {{ {limits} }} }}\n  \
             mid: {{ component: filters/middleware.wasm, limits: {{ {limits} }} }}\nroutes: [{{ {route} }}]\n"
        );
        Gateway::start(&config, &Upstream::start().await).await
    }
}

fn http2() -> Client {
    Client::builder().no_proxy().http2_prior_knowledge().build().expect("a client")
}

/// Waits until so many instances of the target are alive.
async fn alive(gateway: &Gateway, instances: f64) {
    let waiting = async {
        while gateway.metric("lockgate_function_instances", &["function=\"fn\""]).await != instances {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    waited.unwrap_or_else(|_| panic!("there were never {instances} instances"));
}

/// Returns kibibytes of a line of `/proc/PID/status`.
fn kib(gateway: &Gateway, line: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let value = status.lines().find_map(|text| text.strip_prefix(line)).expect("the line");
    value.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Returns a body that is as long as it is asked for, and counts what is taken of it.
fn endless(taken: &Arc<AtomicUsize>, bytes_max: usize) -> Body {
    const PIECE: &[u8] = &[b'x'; 64 << 10];
    let taken = Arc::clone(taken);
    let pieces = futures_util::stream::iter(0..bytes_max / PIECE.len()).map(move |_| {
        taken.fetch_add(PIECE.len(), Ordering::Relaxed);
        Ok::<_, std::io::Error>(hyper::body::Frame::data(Bytes::from_static(PIECE)))
    });
    Body::wrap(StreamBody::new(pieces))
}

/// Sends and fetches far more than may be held, by either version of HTTP, with a client that pauses; then lets a guest
/// pause.
async fn bodies_pass_with_flat_memory(world: World) {
    const BYTES: usize = 128 << 20;
    /// What the gateway may grow by: far more than anything is held, far less than a body.
    const GROWTH_KIB_MAX: usize = 32 << 10;
    /// What lies in the buffers of sockets, or within the windows of a stream.
    const UNDER_WAY_BYTES_MAX: usize = 24 << 20;
    let gateway = world.start("", "deadline: 120s, cpu: 120s").await;
    // Each with a second one: behind a middleware, what is on the way of a request that was taken back lies in the window
    // of its connection until the guest ends.
    for (client, other) in [(gateway.client(), gateway.client()), (&http2(), &http2())] {
        assert_eq!(gateway.send(client.get(gateway.url("/download?1000000"))).await.body.len(), 1_000_000);
        // The peak is counted from here.
        std::fs::write(format!("/proc/{}/clear_refs", gateway.pid()), "5").expect("it runs");
        let before = kib(&gateway, "VmRSS:");
        let sent = endless(&Arc::default(), BYTES);
        assert_eq!(gateway.send(client.post(gateway.url("/length")).body(sent)).await.text(), format!("{BYTES}\n"));
        let response = client.get(gateway.url(&format!("/download?{BYTES}"))).send().await.expect("an answer");
        let mut stream = response.bytes_stream();
        let mut received = stream.next().await.expect("a piece").expect("a piece").len();
        tokio::time::sleep(Duration::from_secs(2)).await;
        while let Some(piece) = stream.next().await {
            received += piece.expect("a piece").len();
        }
        assert_eq!(received, BYTES);
        // Who does not read is not sent more than lies on the way.
        let taken = Arc::default();
        let sending = tokio::spawn(client.post(gateway.url("/sleep?60000")).body(endless(&taken, BYTES)).send());
        tokio::time::sleep(Duration::from_secs(1)).await;
        sending.abort();
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken < UNDER_WAY_BYTES_MAX, "{taken} bytes were taken of a body that nobody reads");
        // And who reads slowly gets all of it.
        let slowly = other.post(gateway.url("/sip?5")).body(endless(&Arc::default(), 4 << 20));
        assert_eq!(gateway.send(slowly).await.text(), format!("{}\n", 4 << 20));
        let grown = kib(&gateway, "VmHWM:").saturating_sub(before);
        assert!(grown < GROWTH_KIB_MAX, "the gateway grew from {before} KiB by {grown} KiB");
    }
}

#[tokio::test]
async fn bodies_pass_a_function_with_flat_memory() {
    bodies_pass_with_flat_memory(FUNCTION).await;
}

#[tokio::test]
async fn bodies_pass_a_service_with_flat_memory() {
    bodies_pass_with_flat_memory(SERVICE).await;
}

#[tokio::test]
async fn bodies_pass_a_program_with_flat_memory() {
    bodies_pass_with_flat_memory(PROGRAM).await;
}

#[tokio::test]
async fn bodies_pass_a_middleware_with_flat_memory() {
    bodies_pass_with_flat_memory(BEHIND).await;
}

#[tokio::test]
async fn a_gibibyte_passes_a_function_both_ways_without_being_held() {
    const BYTES: usize = 1 << 30;
    /// Far more than anything is held, far less than a body.
    const RESIDENT_KIB_MAX: usize = 128 << 10;
    let gateway = FUNCTION.start("", "deadline: 120s, cpu: 120s").await;
    let sent = endless(&Arc::default(), BYTES);
    assert_eq!(
        gateway.send(gateway.client().post(gateway.url("/length")).body(sent)).await.text(),
        format!("{BYTES}\n")
    );
    let response = gateway.client().get(gateway.url(&format!("/download?{BYTES}"))).send().await.expect("an answer");
    let mut stream = response.bytes_stream();
    let mut received = 0;
    while let Some(piece) = stream.next().await {
        received += piece.expect("a piece").len();
    }
    assert_eq!(received, BYTES);
    let peak = kib(&gateway, "VmHWM:");
    assert!(peak < RESIDENT_KIB_MAX, "the gateway had {peak} KiB in memory");
}

/// Requests whose guest sleeps for longer than the test takes, and reads nothing.
const UNREAD: [&str; 6] = [
    "GET /sleep?60000 HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /sleep?60000 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
    "POST /sleep?60000 HTTP/1.1\r\nhost: a\r\ncontent-length: 500\r\n\r\nhello",
    "POST /sleep?60000 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "POST /sleep?60000 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "POST /sleep?60000 HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
];

/// However little the guest does: it sleeps, writes, or is in the middle of a body.
async fn a_client_that_goes_takes_its_guest_along(world: World) {
    let gateway = world.start("", "deadline: 60s, cpu: 20s").await;
    let gone = async |what: &str| {
        tokio::time::timeout(Duration::from_secs(20), alive(&gateway, 0.0)).await.unwrap_or_else(|_| panic!("{what}"));
    };
    let events = "GET /events?100000 HTTP/1.1\r\nhost: a\r\n\r\n";
    for request in UNREAD.into_iter().chain([events]) {
        let mut stream = TcpStream::connect(gateway.http()).await.expect("a connection");
        stream.write_all(request.as_bytes()).await.expect("it is sent");
        alive(&gateway, 1.0).await;
        drop(stream);
        gone(request).await;
    }
    // One stream of a connection, which goes on.
    let client = http2();
    for (path, body) in [("/sleep?60000", 0), ("/sleep?60000", 5), ("/sleep?60000", 1 << 20), ("/events?100000", 0)] {
        let sending = tokio::spawn(client.post(gateway.url(path)).body(vec![b'x'; body]).send());
        alive(&gateway, 1.0).await;
        // Either the answer that is waited for goes, or the one that has begun.
        sending.abort();
        drop(sending.await);
        gone(path).await;
        assert_eq!(gateway.send(client.get(gateway.url("/"))).await.status, StatusCode::OK);
    }
    let told = gateway.access_log();
    let of_sleepers = || told.iter().filter(|line| line["path"] != "/");
    assert!(
        of_sleepers().count() >= 10 && of_sleepers().all(|line| line["error"]["kind"] == "client_gone"),
        "{told:#?}"
    );
}

#[tokio::test]
async fn a_client_that_goes_takes_a_function_along() {
    a_client_that_goes_takes_its_guest_along(FUNCTION).await;
}

#[tokio::test]
async fn a_client_that_goes_takes_a_service_along() {
    a_client_that_goes_takes_its_guest_along(SERVICE).await;
}

#[tokio::test]
async fn a_client_that_goes_takes_a_program_along() {
    a_client_that_goes_takes_its_guest_along(PROGRAM).await;
}

#[tokio::test]
async fn a_connection_goes_on_after_a_body_that_nobody_read() {
    for world in [FUNCTION, SERVICE, PROGRAM] {
        let gateway = world.start("", "deadline: 20s").await;
        let mut stream = TcpStream::connect(gateway.http()).await.expect("a connection");
        for body in ["content-length: 5\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
            let request = format!("POST /sleep?50 HTTP/1.1\r\nhost: a\r\n{body}");
            stream.write_all(request.as_bytes()).await.expect("it is sent");
            let mut reply = Vec::new();
            while !reply.ends_with(b"slept\n") {
                let read = stream.read_buf(&mut reply).await.expect("it is read");
                assert!(read > 0, "{}: {}", world.0, String::from_utf8_lossy(&reply));
            }
        }
    }
}

async fn a_thousand_slow_streams(world: World) {
    let server = "instances: 1000, instance_memory: 16MiB";
    let gateway = world.start(server, "deadline: 30s, cpu: 10s, memory: 16MiB, instances: 1000").await;
    // Each a connection, with as many streams as one may have.
    let clients: Vec<_> = (0..10).map(|_| http2()).collect();
    let streams: Vec<_> = (0..1000)
        .map(|number| {
            let request = clients[number % clients.len()].get(gateway.url("/events?6,2000"));
            tokio::spawn(async move { request.send().await?.bytes().await })
        })
        .collect();
    alive(&gateway, 1000.0).await;
    for stream in join_all(streams).await {
        let bytes = stream.expect("no panic").expect("a whole stream");
        assert!(bytes.ends_with(b"data: 5\n\n"), "{}", String::from_utf8_lossy(&bytes));
    }
    alive(&gateway, 0.0).await;
}

#[tokio::test]
async fn a_thousand_slow_streams_of_a_function_are_served_at_the_same_time() {
    a_thousand_slow_streams(FUNCTION).await;
}

#[tokio::test]
async fn a_thousand_slow_streams_of_a_service_are_served_at_the_same_time() {
    a_thousand_slow_streams(SERVICE).await;
}

#[tokio::test]
async fn folders_are_seen_as_they_are_granted_by_services_and_programs_too() {
    for component in ["service", "cgi"] {
        let config = format!(
            "experimental: wasi-0.3\nfunctions:\n  fn:\n    component: filters/{component}.wasm\n    \
             grants: {{ folders: [{{ path: data, as: /data }}] }}\nroutes: [{{ function: fn }}]\n"
        );
        let guest = if component == "cgi" { Guest::Cgi } else { Guest::Service };
        let builder = Builder::new(&config).guest(guest);
        std::fs::create_dir(builder.path().join("data")).expect("a folder");
        std::fs::write(builder.path().join("data/a.txt"), "a file\n").expect("a file");
        let gateway = builder.start().await;
        assert_eq!(gateway.get("/read?/data/a.txt").await.text(), "a file\n", "{component}");
        for target in ["/read?/data/../lockgate.yaml", "/read?/etc/passwd", "/read?lockgate.yaml"] {
            assert_eq!(gateway.get(target).await.status, StatusCode::FORBIDDEN, "{component} {target}");
        }
    }
}

#[tokio::test]
async fn a_rollout_goes_from_one_world_to_another_and_back() {
    let config = r#"
experimental: wasi-0.3
functions: { fn: { component: filters/function.wasm, vars: { VERSION: v1 } } }
routes: [{ function: fn }]
rollouts:
  next:
    function: fn
    canary: { component: filters/service.wasm, vars: { VERSION: v2 } }
    weight: 0%
    override: { trusted: [127.0.0.0/8] }
"#;
    let gateway = Gateway::start(config, &Upstream::start().await).await;
    // Only a service hands a body back unseen.
    let pass = async |track: &str| {
        let request = gateway.client().post(gateway.url("/pass")).header("x-lockgate-track", track).body("handed on");
        gateway.send(request).await.text()
    };
    assert_eq!((&*pass("stable").await, &*pass("canary").await), ("POST /pass v1\n", "handed on"));
    for (decision, expected) in [("promote", "handed on"), ("rollback", "POST /pass v1\n")] {
        let (status, said) = gateway.cli(&["rollout", decision, "next"]).await;
        assert!(status.success(), "{said}");
        assert_eq!(pass("").await, expected, "{decision}");
    }
}

/// How long an answer takes, in the middle of many.
async fn median(gateway: &Gateway, until: impl Fn(usize) -> bool) -> (Duration, usize) {
    let mut took = Vec::new();
    while !until(took.len()) {
        let began = Instant::now();
        assert_eq!(gateway.get("/").await.status, StatusCode::OK);
        took.push(began.elapsed());
    }
    took.sort_unstable();
    (took[took.len() / 2], took.len())
}

#[tokio::test]
async fn neighbours_of_busy_loops_are_served_as_before() {
    const SPINNERS: usize = 3;
    // A neighbour waits for an epoch of each spinner whenever it has given up the thread, which it does a few times. One
    // that had to wait for their end would take a thousand times as long.
    const SLOWER_MAX: u32 = 50;
    for world in [FUNCTION, SERVICE, PROGRAM] {
        let gateway = world.start("threads: 1", "deadline: 60s, cpu: 1s").await;
        median(&gateway, |served| served == 20).await;
        let (idle, _) = median(&gateway, |served| served == 100).await;
        let spinning: Vec<_> =
            (0..SPINNERS).map(|_| tokio::spawn(gateway.client().get(gateway.url("/spin")).send())).collect();
        alive(&gateway, SPINNERS as f64).await;
        let (busy, served) = median(&gateway, |_| spinning.iter().any(|spinner| spinner.is_finished())).await;
        for spinner in spinning {
            let answer = spinner.await.expect("no panic").expect("an answer");
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        assert!(served > 50 && busy < idle * SLOWER_MAX, "{}: {served} served, {busy:?}, idle {idle:?}", world.0);
    }
}
