//! Outbound HTTP: only where it is granted, through the gateway's connections, and never past the deadline.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lockgate_guests::Guest;
use lockgate_host::{CallErrorKind, Filter, Lane, OutboundGrant, UpstreamBody, UpstreamSending, Upstreams};
use tokio::net::TcpListener;

use crate::{PATIENT, Recorder, Setup, acquire, component, get, header, pass, setup, setup_of};

/// A server that echoes; `/never` is answered never.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicU32>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicU32::new(0));
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(echo)),
                );
            }
        });
        Self { address, connections }
    }
}

async fn echo(request: hyper::Request<Incoming>) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/never" {
        std::future::pending::<()>().await;
    }
    let method = request.method().clone();
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let text = format!("{method} {}", String::from_utf8_lossy(&body));
    Ok(hyper::Response::new(Full::from(text)))
}

fn fetching(url: &str) -> Setup {
    setup(Guest::Outbound).settings(&format!(r#"{{"url": "{url}", "body": "ping"}}"#))
}

async fn outcome(filter: &Arc<Filter>) -> (String, String) {
    let mut exchange = get("/");
    pass(filter, &mut exchange).await;
    let headers = &exchange.request.headers;
    (header(headers, "x-outbound").to_owned(), header(headers, "x-outbound-error").to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granted_request_is_sent_over_a_connection_that_is_kept() {
    let server = Server::start().await;
    let filter = fetching(&format!("http://{}/", server.address)).granted("127.0.0.1", server.address.port()).load();
    assert_eq!((filter.lane(), filter.snapshotted()), (Lane::Fibre, Ok(())));
    for _ in 0..5 {
        assert_eq!(outcome(&filter).await, ("200 POST ping".to_owned(), String::new()));
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
    assert_eq!(filter.live().instances, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reused_instances_fetch_again_and_again() {
    let server = Server::start().await;
    let filter = fetching(&format!("http://{}/", server.address))
        .granted("127.0.0.1", server.address.port())
        .reused(100, 64 << 20)
        .load();
    for _ in 0..5 {
        assert_eq!(outcome(&filter).await.0, "200 POST ping");
    }
    assert_eq!(filter.live().instances, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_grant_covers_is_denied_and_logged() {
    let server = Server::start().await;
    let port = server.address.port();
    let filter = fetching(&format!("http://{}/", server.address))
        .granted("127.0.0.1", port ^ 1)
        .granted("*.127.0.0.1", port)
        .granted("localhost", port)
        .load();
    let sink = Recorder::bound_to(&filter);
    let (came, error) = outcome(&filter).await;
    assert_eq!(came, "failed");
    assert!(error.contains("does not grant"), "{error}");
    assert_eq!(server.connections.load(Ordering::Relaxed), 0);
    let denied = format!("an outbound request to `http://127.0.0.1:{port}` was denied: no grant covers it");
    let lines = sink.take();
    assert!(lines.iter().any(|line| line.ends_with(&denied)), "{lines:?}");
}

/// A grant for the server by a name that leads to this machine.
fn by_name(server: &Server) -> OutboundGrant {
    OutboundGrant::new(false, "localhost", server.address.port())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_to_this_machine_is_refused_where_it_leads() {
    let server = Server::start().await;
    let url = format!("http://localhost:{}/", server.address.port());
    let filter = fetching(&url).granted_as(by_name(&server)).load();
    let sink = Recorder::bound_to(&filter);
    let (came, error) = outcome(&filter).await;
    assert_eq!(came, "failed");
    assert!(error.contains("does not grant the address"), "{error}");
    assert_eq!(server.connections.load(Ordering::Relaxed), 0);
    let lines = sink.take();
    let denied = "a loopback address, which the grant does not list under `addresses`";
    assert!(lines.iter().any(|line| line.ends_with(denied)), "{lines:?}");
    assert_eq!(filter.live().refused, [0, 0, 1]);

    let addresses = ["127.0.0.0/8", "::1/128"].map(|network| network.parse().expect("a network")).into();
    let listed = fetching(&url).granted_as(OutboundGrant { addresses, ..by_name(&server) }).load();
    assert_eq!(outcome(&listed).await.0, "200 POST ping");
    // Its connection is still there, and must not serve the one that may not have made it.
    assert_eq!(outcome(&filter).await.0, "failed");
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_is_not_granted_is_refused_by_name() {
    let server = Server::start().await;
    let address = server.address;
    let reading = OutboundGrant {
        methods: vec!["GET".to_owned(), "HEAD".to_owned()],
        ..OutboundGrant::new(false, "127.0.0.1", address.port())
    };
    let filter = fetching(&format!("http://{address}/")).granted_as(reading.clone()).load();
    let (came, error) = outcome(&filter).await;
    assert_eq!(came, "failed");
    assert!(error.contains("does not grant its method"), "{error}");
    assert_eq!(filter.live().refused, [0, 1, 0]);
    let settings = format!(r#"{{"url": "http://{address}/"}}"#);
    let filter = setup(Guest::Outbound).settings(&settings).granted_as(reading).load();
    assert_eq!(outcome(&filter).await.0, "200 GET ");
}

/// Upstreams that answer with what they are asked.
#[derive(Debug)]
struct Telling;

impl Upstreams for Telling {
    fn send(&self, upstream: &str, request: http::Request<UpstreamBody>) -> UpstreamSending {
        let text = format!("{} {upstream} {}", request.method(), request.uri());
        let body = Full::from(text).map_err(|never| match never {}).boxed_unsync();
        Box::pin(async { Ok(http::Response::new(body)) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_granted_upstream_is_reached_by_what_the_call_was_given_of_which_nothing_is_kept() {
    let url = "http://users.upstream/a?b=c";
    let filter = fetching(url).granted_upstream("users").reused(100, 64 << 20).load();
    assert_eq!(filter.lane(), Lane::Fibre);
    let upstreams: Arc<dyn Upstreams> = Arc::new(Telling);
    for _ in 0..2 {
        let mut exchange = get("/");
        let mut instance = acquire(&filter);
        instance.reach(Arc::clone(&upstreams));
        instance.on_request(&mut exchange).await.expect("no failure");
        drop(instance);
        assert_eq!(header(&exchange.request.headers, "x-outbound"), format!("200 POST users {url}"));
        assert_eq!((filter.live().instances, Arc::strong_count(&upstreams)), (1, 1));
    }
    let (came, error) = outcome(&filter).await;
    assert_eq!(came, "failed");
    assert!(error.contains("DestinationUnavailable"), "{error}");
}

#[tokio::test]
async fn without_a_grant_a_filter_stays_inline_and_is_denied() {
    let filter = setup(Guest::Outbound).settings(r#"{"url": "http://127.0.0.1:9/"}"#).load();
    assert_eq!(filter.lane(), Lane::Inline);
    let (came, error) = outcome(&filter).await;
    assert_eq!(came, "failed");
    assert!(error.contains("does not grant"), "{error}");
    assert_eq!(filter.live().refused, [1, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_ends_at_the_deadline() {
    let server = Server::start().await;
    let filter = fetching(&format!("http://{}/never", server.address))
        .granted("127.0.0.1", server.address.port())
        .limits(|limits| limits.deadline = Duration::from_millis(100))
        .load();
    let mut exchange = get("/a");
    let began = Instant::now();
    let error = acquire(&filter).on_request(&mut exchange).await.expect_err("takes too long");
    assert_eq!(error.kind, CallErrorKind::Deadline);
    assert!(began.elapsed() < PATIENT);
    assert_eq!(exchange.request.uri.path(), "/a", "the exchange came back");
    assert_eq!(filter.live().instances, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_given_up_gives_the_exchange_back() {
    let server = Server::start().await;
    let filter = fetching(&format!("http://{}/never", server.address))
        .granted("127.0.0.1", server.address.port())
        .reused(100, 64 << 20)
        .load();
    let mut exchange = get("/a");
    let mut instance = acquire(&filter);
    let given_up = tokio::time::timeout(Duration::from_millis(100), instance.on_request(&mut exchange)).await;
    given_up.expect_err("is still waiting");
    assert_eq!(exchange.request.uri.path(), "/a");
    drop(instance);
    assert_eq!(filter.live().instances, 0, "an instance that was left in the middle is not reused");
}

/// Returns `component` with an import of `wasi:http/outgoing-handler` that it never uses. Sections of a component may
/// come in any order, so it can be appended.
fn importing_outbound(component: &[u8]) -> Vec<u8> {
    let types = wasmparser::Validator::new().validate_all(component).expect("a component");
    let mut index = types.as_ref().component_type_count();
    let name = b"wasi:http/outgoing-handler@0.2.0";
    // One import, of an instance of the type that is appended with it.
    let mut import = vec![1, 0, name.len() as u8];
    import.extend_from_slice(name);
    import.push(5);
    while index >= 0x80 {
        import.push(index as u8 | 0x80);
        index >>= 7;
    }
    import.push(index as u8);
    let empty_instance_type = [7, 3, 1, 0x42, 0];
    [component, &empty_instance_type, &[10, import.len() as u8], &import].concat()
}

/// Returns `component` without `on-response-body`: its interface gets another name.
fn without_response_body(component: &[u8]) -> Vec<u8> {
    let (from, to) = (b"on-response-body", b"not-a-known-name");
    let mut bytes = component.to_vec();
    let places: Vec<_> = component.windows(from.len()).enumerate().filter(|(_, window)| window == from).collect();
    for (at, _) in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[tokio::test]
async fn a_busy_guest_on_a_fibre_is_cut_and_lets_others_run_meanwhile() {
    let deadline = Duration::from_millis(200);
    let filter = setup_of(importing_outbound(&without_response_body(&component(Guest::Spin))).into())
        .granted("example.com", 80)
        .limits(|limits| limits.deadline = deadline)
        .load();
    assert_eq!(filter.lane(), Lane::Fibre);
    let finished = Arc::new(AtomicU32::new(0));
    let counted = finished.clone();
    let neighbour = tokio::spawn(async move {
        tokio::time::sleep(deadline / 4).await;
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let began = Instant::now();
    let error = acquire(&filter).on_request(&mut get("/")).await.expect_err("loops");
    assert_eq!(error.kind, CallErrorKind::Deadline);
    assert!(began.elapsed() < PATIENT);
    assert_eq!(finished.load(Ordering::Relaxed), 1, "on the only thread there is");
    neighbour.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_server_is_an_error_of_the_guests() {
    let filter = fetching("http://127.0.0.1:1/").granted("127.0.0.1", 1).load();
    let (came, _) = outcome(&filter).await;
    assert_eq!(came, "failed", "nobody listens there");
}
