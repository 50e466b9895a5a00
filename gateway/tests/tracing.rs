//! Traces: whose are continued, what upstreams are told, and what a collector gets.

mod harness;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use harness::{Builder, Gateway, Upstream};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use lockgate_guests::Guest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Takes spans as a collector does: OTLP over HTTP, in protobuf.
struct Collector {
    address: SocketAddr,
    got: Arc<watch::Sender<Vec<Taken>>>,
    /// Each answer takes a permit.
    gate: Arc<Semaphore>,
}

#[derive(Clone, Debug)]
struct Taken {
    authorization: String,
    request: ExportTraceServiceRequest,
}

impl Collector {
    async fn start() -> Self {
        Self::with(Semaphore::MAX_PERMITS, None).await
    }

    async fn with(permits: usize, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (got, gate) = (Arc::new(watch::Sender::default()), Arc::new(Semaphore::new(permits)));
        let (taking, at) = (Arc::clone(&got), Arc::clone(&gate));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (got, gate) = (Arc::clone(&taking), Arc::clone(&at));
                let service = service_fn(move |request| take(Arc::clone(&got), Arc::clone(&gate), request));
                let http = hyper::server::conn::http1::Builder::new();
                match tls.clone() {
                    None => drop(tokio::spawn(http.serve_connection(TokioIo::new(stream), service))),
                    Some(tls) => drop(tokio::spawn(async move {
                        let stream = tls.accept(stream).await.unwrap();
                        http.serve_connection(TokioIo::new(stream), service).await
                    })),
                }
            }
        });
        Self { address, got, gate }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans, once there are so many.
    async fn spans(&self, count: usize) -> Vec<Span> {
        let mut got = self.got.subscribe();
        let enough = got.wait_for(|taken| spans(taken).len() >= count);
        let taken = tokio::time::timeout(Duration::from_secs(60), enough).await;
        spans(&taken.expect("the spans arrive").unwrap())
    }

    fn taken(&self) -> Vec<Taken> {
        self.got.borrow().clone()
    }
}

fn spans(taken: &[Taken]) -> Vec<Span> {
    let resources = taken.iter().flat_map(|taken| &taken.request.resource_spans);
    resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
}

async fn take(
    got: Arc<watch::Sender<Vec<Taken>>>,
    gate: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    gate.acquire().await.unwrap().forget();
    let sound = request.uri().path() == "/v1/traces" && request.headers()["content-type"] == "application/x-protobuf";
    let authorization = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    assert!(sound);
    got.send_modify(|taken| taken.push(Taken { authorization: authorization.unwrap_or_default(), request }));
    Ok(Response::builder().header("content-type", "application/x-protobuf").body(Full::default()).unwrap())
}

fn config(server: &str, tracing: &str) -> String {
    format!(
        r#"
server: {{ {server} }}
tracing: {tracing}
upstreams:
  app: ["${{UPSTREAM}}"]
  shaky: {{ endpoints: ["${{UPSTREAM}}"], retries: {{ attempts: 1, on: [503], backoff: 1ms }} }}
filters: {{ tag: {{ component: filters/tag.wasm, settings: {{ value: v1 }} }} }}
routes:
  - {{ name: app, filters: [tag], upstream: app }}
  - {{ name: shaky, match: {{ path: /status/* }}, upstream: shaky }}
rollouts:
  tag-2: {{ filter: tag, canary: {{ settings: {{ value: v2 }} }}, weight: 0%, key: [{{ header: x-user-id }}], override: {{ trusted: [127.0.0.1] }} }}
"#
    )
}

fn parent(sampled: bool) -> String {
    format!("00-{TRACE}-{PARENT}-0{}", u8::from(sampled))
}

/// The parts of a `traceparent`.
fn parts(traceparent: &str) -> (String, String, String) {
    let mut parts = traceparent.split('-').map(str::to_owned);
    assert_eq!(parts.next().as_deref(), Some("00"), "{traceparent}");
    (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(span: &Span) -> HashMap<String, String> {
    let text = |value: &Attribute| match value {
        Attribute::StringValue(text) => text.clone(),
        Attribute::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = span
        .attributes
        .iter()
        .map(|pair| (pair.key.clone(), text(pair.value.as_ref().unwrap().value.as_ref().unwrap())));
    pairs.collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = spans.iter().find(|span| span.name == name);
    found.unwrap_or_else(|| panic!("no `{name}` among {:?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>()))
}

/// Waits until so many spans are counted: that is done when the collector's answer has been read.
async fn counted(gateway: &Gateway, outcome: &str, count: f64) {
    let wait = async {
        while gateway.metric("lockgate_trace_spans_total", &[&format!("outcome=\"{outcome}\"")]).await < count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("{count} are never {outcome}"));
}

#[tokio::test]
async fn a_request_is_a_span_and_what_was_done_for_it_are_spans_below() {
    let (up, collector) = (Upstream::start().await, Collector::start().await);
    let tracing = format!(
        "{{ otlp: \"{}\", sample: 100%, service: edge, headers: {{ authorization: Bearer of }} }}",
        collector.url()
    );
    let gateway = Gateway::start(&config("trusted_proxies: [127.0.0.1]", &tracing), &up).await;
    let request = gateway.client().get(gateway.url("/a?secret=1")).header("traceparent", parent(true));
    let request = request.header("tracestate", "vendor=1").header("x-lockgate-track", "canary");
    let reply = gateway.send(request).await;
    let line = gateway.logged(|line| line["path"] == "/a").await;
    assert_eq!(line["trace"], TRACE);

    // The request, two calls of the filter, and an attempt.
    let spans = collector.spans(4).await;
    assert_eq!(spans.len(), 4, "{spans:?}");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    assert!(spans.iter().all(|span| span.start_time_unix_nano <= span.end_time_unix_nano));
    let request = named(&spans, "GET app");
    assert_eq!((hex(&request.parent_span_id).as_str(), request.kind()), (PARENT, SpanKind::Server));
    let said = attributes(request);
    assert_eq!(said["http.response.status_code"], "200");
    assert_eq!(said["url.path"], "/a");
    assert_eq!(said["http.route"], "app");
    assert_eq!(said["lockgate.request_id"], line["id"].as_str().unwrap());
    assert!(!format!("{spans:?}").contains("secret"));

    let attempt = named(&spans, "upstream app");
    assert_eq!(attempt.kind(), SpanKind::Client);
    assert_eq!(attributes(attempt)["network.peer.port"], up.address.port().to_string());
    for phase in ["on-request", "on-response"] {
        let call = attributes(named(&spans, &format!("filter tag {phase}")));
        assert_eq!(call["lockgate.track"], "canary");
        assert_eq!(call["lockgate.version"], line["filters"][0]["version"].as_str().unwrap());
        assert_eq!(call["lockgate.outcome"], "continue");
    }
    for span in spans.iter().filter(|span| span.name != "GET app") {
        assert_eq!(span.parent_span_id, request.span_id, "{}", span.name);
        assert!(span.start_time_unix_nano >= request.start_time_unix_nano, "{}", span.name);
        assert!(span.end_time_unix_nano <= request.end_time_unix_nano, "{}", span.name);
    }

    // What the upstream does is below the attempt.
    let (trace, span, flags) = parts(reply.seen().header("traceparent"));
    assert_eq!((trace.as_str(), span, flags.as_str()), (TRACE, hex(&attempt.span_id), "01"));
    assert_eq!(reply.seen().header("tracestate"), "vendor=1");

    let taken = &collector.taken()[0];
    assert_eq!(taken.authorization, "Bearer of");
    let resource = taken.request.resource_spans[0].resource.as_ref().unwrap();
    let service = resource.attributes.iter().find(|pair| pair.key == "service.name").unwrap();
    assert!(format!("{service:?}").contains("\"edge\""), "{service:?}");
    counted(&gateway, "sent", 4.0).await;
}

#[tokio::test]
async fn each_attempt_is_a_span_of_its_own() {
    let (up, collector) = (Upstream::start().await, Collector::start().await);
    let tracing = format!("{{ otlp: \"{}\", sample: 100% }}", collector.url());
    let gateway = Gateway::start(&config("", &tracing), &up).await;
    assert_eq!(gateway.get("/status/503").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let spans = collector.spans(3).await;
    let request = named(&spans, "GET shaky");
    assert!(request.parent_span_id.is_empty() || hex(&request.parent_span_id) == "0".repeat(16));
    let attempts: Vec<_> = spans.iter().filter(|span| span.name == "upstream shaky").collect();
    assert_eq!(attempts.len(), 2);
    assert_ne!(attempts[0].span_id, attempts[1].span_id);
    assert!(attempts.iter().all(|attempt| attributes(attempt)["http.response.status_code"] == "503"));
    let resent: Vec<_> =
        attempts.iter().map(|attempt| attributes(attempt).get("http.request.resend_count").cloned()).collect();
    assert_eq!(resent, [None, Some("1".to_owned())]);
    assert_eq!(attributes(request)["lockgate.generation"], "1");
}

#[tokio::test]
async fn the_call_of_a_function_is_a_span_and_the_function_knows_its_trace() {
    let (up, collector) = (Upstream::start().await, Collector::start().await);
    let config = format!(
        "tracing: {{ otlp: \"{}\", sample: 100% }}\nfunctions: {{ fn: {{ component: filters/function.wasm }} }}\n\
         routes: [{{ name: all, function: fn }}]",
        collector.url()
    );
    let gateway = Gateway::start(&config, &up).await;
    let seen = gateway.get("/request").await.text();
    let spans = collector.spans(2).await;
    let (request, call) = (named(&spans, "GET all"), named(&spans, "function fn"));
    assert_eq!(call.parent_span_id, request.span_id);
    assert_eq!(attributes(call)["lockgate.outcome"], "respond");
    assert_eq!(attributes(call)["lockgate.track"], "stable");
    // What the function does is below its own call.
    let told = format!("traceparent: 00-{}-{}-01", hex(&request.trace_id), hex(&call.span_id));
    assert!(seen.contains(&told), "{told} is not in {seen}");
}

#[tokio::test]
async fn a_client_that_is_not_trusted_begins_a_trace() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&config("", "{ sample: 100% }"), &up).await;
    let request = gateway.client().get(gateway.url("/a")).header("traceparent", parent(true));
    let seen = gateway.send(request.header("tracestate", "vendor=1")).await.seen();
    let (trace, span, flags) = parts(seen.header("traceparent"));
    assert!(trace != TRACE && span != PARENT && flags == "01", "{seen:?}");
    assert_eq!(seen.header("tracestate"), "", "it belongs to the trace that was not continued");
    let line = gateway.logged(|line| line["path"] == "/a").await;
    assert_eq!(line["trace"], trace);
}

#[tokio::test]
async fn a_parents_decision_on_sampling_holds() {
    let (up, collector) = (Upstream::start().await, Collector::start().await);
    let tracing = format!("{{ otlp: \"{}\", sample: 0%, continue_from: any }}", collector.url());
    let gateway = Gateway::start(&config("", &tracing), &up).await;
    let send = async |path: &str, parent: Option<String>| {
        let request = gateway.client().get(gateway.url(path));
        let request = match parent {
            Some(parent) => request.header("traceparent", parent),
            None => request,
        };
        gateway.send(request).await.seen().header("traceparent").to_owned()
    };
    // Nobody will ever find a span of ours in it: it goes on at the one that it came with.
    assert_eq!(send("/not-sampled", Some(parent(false))).await, parent(false));
    assert_eq!(parts(&send("/begun", None).await).2, "00");
    assert_eq!(parts(&send("/broken", Some("00-xyz".to_owned())).await).2, "00");
    assert_eq!(parts(&send("/sampled", Some(parent(true))).await).0, TRACE);
    let spans = collector.spans(4).await;
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:?}");
}

#[tokio::test]
async fn without_the_section_the_header_passes_as_it_came() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(&config("", "").replace("tracing: \n", ""), &up).await;
    let reply = gateway.get_with("/a", "traceparent", "whatever it is").await;
    assert_eq!(reply.seen().header("traceparent"), "whatever it is");
    assert_eq!(gateway.get("/b").await.seen().header("traceparent"), "");
    assert_eq!(gateway.logged(|line| line["path"] == "/a").await.get("trace"), None::<&Value>);
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_spans_and_no_request() {
    let up = Upstream::start().await;
    // Nobody listens there.
    let gateway = Gateway::start(&config("", "{ otlp: \"http://127.0.0.1:1\", sample: 100%, timeout: 1s }"), &up).await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    }
    gateway.says("the collector takes no spans").await;
    // Four for each request: of those that were not sent yet, nothing is known.
    counted(&gateway, "failed", 4.0).await;
}

#[tokio::test]
async fn what_waits_is_sent_before_the_end() {
    let (up, collector) = (Upstream::start().await, Collector::with(0, None).await);
    let tracing = format!("{{ otlp: \"{}\", sample: 100% }}", collector.url());
    let mut gateway = Gateway::start(&config("", &tracing), &up).await;
    for _ in 0..10 {
        assert_eq!(gateway.get("/").await.status, StatusCode::OK);
    }
    gateway.signal(Signal::TERM);
    gateway.says("draining").await;
    collector.gate.add_permits(1_000);
    assert!(gateway.ended().await.success());
    assert_eq!(collector.spans(40).await.len(), 40);
}

#[tokio::test]
async fn a_collector_is_asked_by_tls_and_must_be_who_it_says() {
    let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
    let server = server.with_no_client_auth().with_single_cert(vec![identity.cert.der().clone()], key.into()).unwrap();
    let tls = TlsAcceptor::from(Arc::new(server));
    let (up, collector) = (Upstream::start().await, Collector::with(Semaphore::MAX_PERMITS, Some(tls)).await);
    let port = collector.address.port();
    for (host, outcome) in [("localhost", "sent"), ("127.0.0.1", "failed")] {
        let tracing = format!("{{ otlp: \"https://{host}:{port}\", sample: 100%, timeout: 2s }}");
        let builder = Builder::new(&config("", &tracing)).upstream(&up).guest(Guest::Tag);
        let authorities = builder.path().join("authorities.pem");
        std::fs::write(&authorities, identity.cert.pem()).unwrap();
        let gateway = builder.variable("SSL_CERT_FILE", authorities.to_str().unwrap()).start().await;
        gateway.get("/").await;
        if outcome == "sent" {
            assert_eq!(collector.spans(4).await.len(), 4);
        } else {
            gateway.says("the collector takes no spans").await;
            counted(&gateway, "failed", 4.0).await;
        }
    }
}

#[tokio::test]
async fn a_reload_turns_traces_on_and_off() {
    let (up, collector) = (Upstream::start().await, Collector::start().await);
    let off = config("", "").replace("tracing: \n", "");
    let gateway = Gateway::start(&off, &up).await;
    gateway.get("/").await;
    gateway.write_config(&config("", &format!("{{ otlp: \"{}\", sample: 100% }}", collector.url())));
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    gateway.get("/").await;
    assert_eq!(collector.spans(4).await.len(), 4);
    gateway.write_config(&off);
    assert_eq!(gateway.reload().await.status, StatusCode::OK);
    assert_eq!(gateway.get("/").await.seen().header("traceparent"), "");
}
