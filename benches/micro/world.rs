//! What the benchmarks share: a host, loaded filters, an exchange, a configuration with its snapshot.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use http::{HeaderValue, Request, Response};
use lockgate::control::build::{Chose, Chosen};
use lockgate::control::facts::Facts;
use lockgate::control::upstream::Upstream;
use lockgate::control::version::Version;
use lockgate::metrics::Metrics;
use lockgate_config::model::{Config, FailureMode};
use lockgate_config::problem::Source;
use lockgate_guests::Guest;
use lockgate_host::{
    Exchange, Filter, FilterSpec, Function, FunctionLimits, FunctionSpec, Grants, Host, Isolation, Limits, Options,
    Silent, StoreOptions,
};
use tempfile::TempDir;
use tokio::sync::mpsc::unbounded_channel;

/// Instances live for one request, or for as long as the benchmark.
pub(crate) const ISOLATIONS: [(&str, Isolation); 2] =
    [("fresh", Isolation::Request), ("reused", Isolation::Reused { requests: u32::MAX, memory_bytes: u64::MAX })];

/// A host with a cache of its own.
pub(crate) struct World {
    host: Arc<Host>,
    _dir: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let host = Host::new(Options {
            cache_dir: dir.path().join("cache"),
            cache_bytes_max: 1 << 30,
            key_file: dir.path().join("cache.key"),
            compile_threads: 1,
            instances_max: 1_000,
            instance_memory_bytes_max: 64 << 20,
            store: StoreOptions::Embedded { file: dir.path().join("key-value.db") },
        });
        Self { host: host.expect("a host"), _dir: dir }
    }

    pub(crate) fn load(&self, name: &str, component: Vec<u8>, isolation: Isolation) -> Arc<Filter> {
        self.load_with(name, component, "null".to_owned(), isolation)
    }

    /// Loads a filter with settings, in JSON.
    pub(crate) fn load_with(
        &self,
        name: &str,
        component: Vec<u8>,
        settings: String,
        isolation: Isolation,
    ) -> Arc<Filter> {
        let spec = FilterSpec {
            name: name.into(),
            component: component.into(),
            settings,
            grants: Grants::default(),
            isolation,
            limits: Limits::default(),
        };
        self.host.load(&spec, &Silent).expect("the filter loads")
    }

    /// Loads the function that answers `hello`.
    pub(crate) fn load_hello(&self, isolation: Isolation) -> Arc<Function> {
        let spec = FunctionSpec {
            name: "hello".into(),
            component: fs::read(Guest::Hello.path()).expect("the guest").into(),
            vars: Vec::new(),
            config: Vec::new(),
            grants: Grants::default(),
            isolation,
            limits: FunctionLimits::default(),
        };
        self.host.load_function(&spec, &Silent).expect("the function loads")
    }

    /// Loads the guest that reads one header and sets one on either side: an ordinary filter in Rust, with its standard
    /// library.
    pub(crate) fn load_read_set(&self, isolation: Isolation) -> Arc<Filter> {
        let filter = self.load("read-set", fs::read(Guest::ReadSet.path()).expect("the guest"), isolation);
        filter.bind(Arc::new(Silent));
        filter
    }
}

/// Returns an exchange in the middle of its life: there is a response already, so that every phase can run.
pub(crate) fn exchange() -> Box<Exchange> {
    let request = Request::get("/articles/2541?page=2")
        .header("host", "shop.example.com")
        .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
        .header("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
        .header("accept-language", "en-GB,en;q=0.5")
        .body(())
        .expect("a request");
    let upstreams = Arc::from([Arc::from("origin")]);
    let client = Ipv4Addr::new(192, 0, 2, 7).into();
    let mut exchange = Exchange::new(
        request.into_parts().0,
        "http",
        client,
        Arc::from("0123456789abcdef"),
        Arc::from("all"),
        upstreams,
    );
    let mut response = Response::new(()).into_parts().0;
    response.headers.insert("content-type", HeaderValue::from_static("text/plain"));
    exchange.response = Some(response);
    Box::new(exchange)
}

/// Returns a configuration with `filters` filters, all of them on each of `routes` routes, and a rollout of the upstream.
pub(crate) fn facts(routes: usize, filters: usize) -> Facts {
    let mut yaml = "listeners: [ \"127.0.0.1:8080\" ]
upstreams: { origin: [ \"127.0.0.1:3000\" ], next: [ \"127.0.0.1:3001\" ] }
rollouts: { next: { upstream: origin, canary: next, weight: 5% } }
"
    .to_owned();
    let names: Vec<String> = (0..filters).map(|number| format!("f{number}")).collect();
    if filters > 0 {
        yaml.push_str("filters:\n");
    }
    for name in &names {
        writeln!(yaml, "  {name}: {{ component: read_set.wasm }}").expect("a string takes everything");
    }
    yaml.push_str("routes:\n");
    let names = names.join(", ");
    for number in 0..routes {
        let matching = format!("{{ host: h{}.example.com, path: \"/things-{number}/{{id}}\" }}", number % 10);
        writeln!(yaml, "  - {{ match: {matching}, filters: [ {names} ], upstream: origin }}")
            .expect("a string takes everything");
    }
    let source = Source { file: "lockgate.yaml".into(), text: yaml.into() };
    let config = lockgate_config::parse(source.clone(), Path::new(""), &|_| None);
    let config = config.unwrap_or_else(|report| panic!("{report}"));
    let (listeners, upstreams) = (vec![None; config.listeners.len()], vec![None; config.upstreams.len()]);
    Facts::new(config, source, Vec::new(), Vec::new(), vec![None], listeners, upstreams)
}

/// Returns what was chosen for a configuration in which every filter is this one.
pub(crate) fn chosen(config: &Config, filter: &Arc<Filter>, metrics: &Metrics) -> Chosen {
    let (report, _) = unbounded_channel();
    // A filter is bound once: one version stands for all of them.
    let version = Version::new(Arc::clone(filter), FailureMode::Closed, metrics, &report);
    let upstreams: Vec<_> = config.upstreams.iter().map(|upstream| Upstream::new(upstream, None, metrics)).collect();
    let upstream = |index: usize| Chose {
        stable: Arc::clone(&upstreams[index]),
        canary: (index == 0).then(|| (0, Arc::clone(&upstreams[1]))),
    };
    Chosen {
        filters: config.filters.iter().map(|_| Chose { stable: Arc::clone(&version), canary: None }).collect(),
        functions: Vec::new(),
        upstreams: (0..upstreams.len()).map(upstream).collect(),
        shadows: config.rollouts.iter().map(|_| None).collect(),
        versions: vec![None; config.rollouts.len()],
        counts: config.rollouts.iter().map(|_| None).collect(),
        weights: config.rollouts.iter().map(lockgate_config::model::Rollout::weight).collect(),
    }
}
