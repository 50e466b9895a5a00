//! What an endpoint that fails costs. One of three dies, hangs, resets its connections, is slow or answers nonsense while
//! requests come in: a stated share of them fails at most, the gauges show it, and nobody has to restart anything.

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{Builder, Gateway, Load, Tally};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The gateway does with a failing endpoint what this says, within what a user would write. Timeouts are long enough that a
/// busy machine is not taken for an endpoint that hangs.
const CONFIG: &str = r#"
server: { watch: false }
upstreams:
  app:
    endpoints: ["${ONE}", "${TWO}", "${THREE}"]
    balance: least_requests
    timeouts: { connect: 2s, read: 2s }
    retries: { attempts: 2, on: [502, 503, 504] }
    ejection: { failures: 5, for: 1s }
    HEALTH
routes: [{ upstream: app }]
"#;

const CHECKS: &str = "health: { path: /healthz, interval: 500ms, timeout: 500ms, unhealthy: 2, healthy: 2 }";

/// Clients that send GET, and can be answered by another endpoint.
const GETS: usize = 24;

/// Clients that send POST, which is not sent twice.
const POSTS: usize = 8;

/// Requests of either kind that the shares are about, at least.
const COUNTED: (usize, usize) = (1_500, 500);

/// What an endpoint does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// Nobody listens.
    Killed,
    /// It accepts, and says nothing.
    Hung,
    /// It accepts, reads, and resets the connection.
    Resetting,
    /// It takes its time.
    Slow,
    /// It answers with something that is not HTTP.
    Garbage,
}

/// How long a slow endpoint takes: less than the timeout, and far more than the others.
const SLOWNESS: Duration = Duration::from_millis(200);

/// A server at an address that stays, whatever becomes of the server.
struct Endpoint {
    address: SocketAddr,
    mood: watch::Sender<Mood>,
    answered: Arc<AtomicUsize>,
}

impl Endpoint {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mood, moods) = watch::channel(Mood::Well);
        let endpoint = Self { address: listener.local_addr().unwrap(), mood, answered: Arc::default() };
        tokio::spawn(live(listener, endpoint.address, moods, Arc::clone(&endpoint.answered)));
        endpoint
    }

    fn becomes(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Requests that it has answered as it should.
    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }
}

/// Serves until the endpoint is dropped; while it is killed, neither the listener nor a connection is left.
async fn live(
    mut listener: TcpListener,
    address: SocketAddr,
    mut moods: watch::Receiver<Mood>,
    answered: Arc<AtomicUsize>,
) {
    let told = moods.clone();
    loop {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.unwrap();
                    connections.spawn(converse(stream, told.clone(), Arc::clone(&answered)));
                }
                killed = moods.wait_for(|mood| *mood == Mood::Killed) => match killed {
                    Ok(_) => break,
                    Err(_) => return,
                },
            }
        }
        drop((listener, connections));
        if moods.wait_for(|mood| *mood != Mood::Killed).await.is_err() {
            return;
        }
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        listener = socket.listen(1024).unwrap();
    }
}

async fn converse(mut stream: TcpStream, mut moods: watch::Receiver<Mood>, answered: Arc<AtomicUsize>) {
    let mut request = Vec::new();
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            let Ok(1..) = stream.read_buf(&mut request).await else { return };
        }
        let mood = *moods.borrow();
        match mood {
            Mood::Well => {}
            Mood::Killed => return,
            Mood::Hung => {
                if moods.wait_for(|mood| *mood != Mood::Hung).await.is_err() {
                    return;
                }
            }
            Mood::Resetting => {
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                return;
            }
            Mood::Slow => tokio::time::sleep(SLOWNESS).await,
            Mood::Garbage => {
                let _ = stream.write_all(b"\x16\x03\x01 certainly not HTTP\r\n\r\n").await;
                return;
            }
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
            return;
        }
        if !request.starts_with(b"GET /healthz ") {
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn start(config: &str) -> ([Endpoint; 3], Gateway) {
    let endpoints = [Endpoint::start().await, Endpoint::start().await, Endpoint::start().await];
    let mut builder = Builder::new(config);
    for (name, endpoint) in ["ONE", "TWO", "THREE"].into_iter().zip(&endpoints) {
        builder = builder.variable(name, &endpoint.address.to_string());
    }
    let gateway = builder.start().await;
    (endpoints, gateway)
}

/// Endpoints in a state, as the gauge has it.
async fn endpoints(gateway: &Gateway, state: &str) -> f64 {
    gateway.metric("lockgate_upstream_endpoints", &[&format!("state=\"{state}\"")]).await
}

/// Waits until the gauges show something.
async fn shown(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let seen = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.unwrap_or_else(|_| panic!("never seen: {what}"));
}

/// The share of the requests between two moments that failed.
fn share_failed(before: &Tally, after: &Tally) -> f64 {
    (after.failed() - before.failed()) as f64 / (after.asked() - before.asked()) as f64
}

/// Lets one of three endpoints get into a mood under load, and out of it.
async fn check(mood: Mood, health: &str, gets_failed_max: f64, posts_failed_max: f64) {
    let ([one, _two, _three], gateway) = start(&CONFIG.replace("HEALTH", health)).await;
    let mut load = Load::new();
    load.plain("GET", GETS, Method::GET, &gateway.url("/"), true);
    load.plain("POST", POSTS, Method::POST, &gateway.url("/"), true);
    // All three get requests, and the budget of retries is what it is in an ordinary hour.
    load.goes_on("GET", 600).await;
    assert!(one.answered() > 0);
    let before = (load.tally("GET"), load.tally("POST"), one.answered());
    assert_eq!((before.0.failed(), before.1.failed()), (0, 0), "{before:?}");

    one.becomes(mood);
    if mood != Mood::Slow {
        shown("an endpoint that is out", async || {
            endpoints(&gateway, "unhealthy").await + endpoints(&gateway, "ejected").await == 1.0
        })
        .await;
    }
    tokio::join!(load.goes_on("GET", COUNTED.0), load.goes_on("POST", COUNTED.1));
    let (gets, posts, answered) = (load.tally("GET"), load.tally("POST"), one.answered());

    one.becomes(Mood::Well);
    shown("three usable endpoints", async || endpoints(&gateway, "usable").await == 3.0).await;
    let back = one.answered();
    shown("requests to the endpoint that is back", async || one.answered() > back).await;
    let (recovered, since) = (load.tally("GET"), load.tally("POST"));
    load.goes_on("GET", 200).await;
    let now = (load.tally("GET"), load.tally("POST"));
    drop(load.stop().await);

    let failed = (share_failed(&before.0, &gets), share_failed(&before.1, &posts));
    assert!(failed.0 <= gets_failed_max, "{mood:?}: {:.4} of the GETs failed: {:?}", failed.0, gets.failures);
    assert!(failed.1 <= posts_failed_max, "{mood:?}: {:.4} of the POSTs failed: {:?}", failed.1, posts.failures);
    assert_eq!((now.0.failed(), now.1.failed()), (recovered.failed(), since.failed()), "{mood:?}: failures go on");
    if mood == Mood::Slow {
        // A third would be its share if it were as fast as the others.
        let all = gets.answered + posts.answered - before.0.answered - before.1.answered;
        assert!((answered - before.2) * 5 < all, "{} of {all} requests went to the slow one", answered - before.2);
    }
}

/// The bounds: of requests that may be sent twice none fails, as long as the budget for retries holds; of the others those
/// fail that the endpoint had, or got before it was left out. A third of all requests would be without retries or ejection.
macro_rules! bounds {
    ($($name:ident: $mood:ident, $health:expr, GET $gets:literal, POST $posts:literal;)*) => {
        $(#[tokio::test]
        async fn $name() {
            check(Mood::$mood, $health, $gets, $posts).await;
        })*
    };
}

bounds! {
    an_endpoint_that_is_killed_costs_nothing_that_can_be_sent_again: Killed, CHECKS, GET 0.0, POST 0.05;
    an_endpoint_that_hangs_costs_nothing_that_can_be_sent_again: Hung, CHECKS, GET 0.0, POST 0.05;
    an_endpoint_that_resets_costs_nothing_that_can_be_sent_again: Resetting, CHECKS, GET 0.0, POST 0.05;
    an_endpoint_that_talks_nonsense_costs_nothing_that_can_be_sent_again: Garbage, CHECKS, GET 0.0, POST 0.05;
    an_endpoint_that_is_slow_costs_nothing_and_gets_less: Slow, CHECKS, GET 0.0, POST 0.0;
    an_endpoint_that_hangs_is_found_out_without_checks: Hung, "", GET 0.0, POST 0.1;
    an_endpoint_that_resets_is_found_out_without_checks: Resetting, "", GET 0.0, POST 0.1;
}

#[tokio::test]
async fn with_all_endpoints_failing_the_answer_is_503_at_once_and_recovery_needs_no_restart() {
    /// A request that waited for an endpoint would take `timeouts.read`, three times.
    const AT_ONCE: Duration = Duration::from_secs(3);

    let config = CONFIG.replace("HEALTH", CHECKS).replace("read: 2s", "read: 20s");
    let (all, gateway) = start(&config).await;
    let burst = async || join_all((0..40).map(|_| gateway.get("/"))).await;
    for mood in [Mood::Killed, Mood::Hung, Mood::Resetting, Mood::Garbage] {
        assert!(burst().await.iter().all(|reply| reply.status == StatusCode::OK), "before {mood:?}");
        all.iter().for_each(|endpoint| endpoint.becomes(mood));
        shown("no endpoint that is well", async || endpoints(&gateway, "unhealthy").await == 3.0).await;

        let began = Instant::now();
        for reply in burst().await {
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{mood:?}");
        }
        assert!(began.elapsed() < AT_ONCE, "{mood:?}: {:?}", began.elapsed());

        all.iter().for_each(|endpoint| endpoint.becomes(Mood::Well));
        shown("three usable endpoints", async || endpoints(&gateway, "usable").await == 3.0).await;
    }
    assert!(burst().await.iter().all(|reply| reply.status == StatusCode::OK));
}
