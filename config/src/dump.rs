//! The resolved configuration as data, for people to read: every default is there, and no secret.

mod policy;

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::model::{
    AccessLog, Alpn, Balance, Coding, Config, ContinueFrom, Decider, FailureMode, FilterLimits, FilterPolicy,
    FilterVersion, FunctionVersion, Grants, Guard, Health, HealthCheck, Isolation, KeyPart, KeyValueStore, Listener,
    LogFormat, LogOutput, OnBad, Plan, Rollout, RolloutSubject, Route, Server, ShadowLimits, SlownessGuard, Stage,
    StaticFolder, Target, Tls, TlsVersion, Tracing, Upstream, UpstreamLimits, UpstreamProtocol,
};
use crate::units::format_duration;

/// Returns a configuration in the form of a file, with every default filled in. The admin's token is redacted, and
/// settings are as they were written, without the values of variables. Apart from those, reading it gives the same
/// configuration.
#[must_use]
pub fn dump(config: &Config) -> Value {
    let mut admin = json!({ "address": config.admin.address.to_string() });
    if let Some(token) = &config.admin.token {
        admin["token"] = token.to_string().into();
    }
    let filters = config.filters.iter().map(|filter| {
        let mut value = version(&filter.version);
        policy(&filter.policy, &mut value);
        value.insert("require_approval".into(), require_approval(filter.require_approval));
        (filter.name.to_string(), Value::Object(value))
    });
    let functions = config.functions.iter().map(|function| {
        let mut value = function_version(&function.version);
        let limits = function.policy.limits;
        value.insert("isolation".into(), isolation(function.policy.isolation));
        value.insert(
            "limits".into(),
            json!({
                "deadline": format_duration(limits.deadline),
                "cpu": format_duration(limits.cpu),
                "memory": limits.memory,
                "table_elements": limits.table_elements,
                "instances": limits.instances,
                "key_value": limits.key_value,
                "key_value_entries": limits.key_value_entries,
            }),
        );
        value.insert("require_approval".into(), require_approval(function.require_approval));
        (function.name.to_string(), Value::Object(value))
    });
    let experimental: &[&str] = if config.experimental.wasi_03 { &["wasi-0.3"] } else { &[] };
    let mut value = json!({
        "experimental": experimental,
        "server": server(&config.server),
        "listeners": config.listeners.iter().map(listener).collect::<Value>(),
        "admin": admin,
        "upstreams": config.upstreams.iter().map(|it| (it.name.to_string(), upstream(it))).collect::<Map<_, _>>(),
        "filters": filters.collect::<Map<_, _>>(),
        "functions": functions.collect::<Map<_, _>>(),
        "routes": config.routes.iter().map(|it| route(it, config)).collect::<Value>(),
        "rollouts": rollouts(config),
    });
    if let Some(settings) = &config.tracing {
        value["tracing"] = tracing(settings);
    }
    value
}

fn access_log(log: &AccessLog) -> Value {
    let mut value = json!({
        "sample": log.sample.to_string(),
        "redact": {
            "headers": log.redact.headers,
            "query": log.redact.query,
            "client": log.redact.client,
        },
    });
    match &log.format {
        LogFormat::Json { query, headers } => {
            value["format"] = "json".into();
            value["query"] = (*query).into();
            value["headers"] = headers.clone().into();
        }
        LogFormat::Text { written, .. } => value["format"] = escaped(written).into(),
    }
    if let LogOutput::File(path) = &log.output {
        value["file"] = path.display().to_string().into();
    }
    value
}

/// Returns a text that reads back as itself where variables are expanded.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}

fn tracing(tracing: &Tracing) -> Value {
    let mut value = json!({
        "continue_from": match tracing.continue_from {
            ContinueFrom::Trusted => "trusted",
            ContinueFrom::Any => "any",
            ContinueFrom::None => "none",
        },
        "sample": tracing.sample.to_string(),
    });
    if let Some(otlp) = &tracing.otlp {
        value["otlp"] = otlp.url.clone().into();
        value["headers"] = otlp
            .headers
            .iter()
            .map(|(name, secret)| (name.clone(), secret.to_string().into()))
            .collect::<Map<_, _>>()
            .into();
        value["service"] = escaped(&otlp.service).into();
        value["timeout"] = format_duration(otlp.timeout).into();
    }
    value
}

fn server(server: &Server) -> Value {
    let mut limits = json!({
        "read_timeout": format_duration(server.limits.read_timeout),
        "write_timeout": format_duration(server.limits.write_timeout),
        "idle_timeout": format_duration(server.limits.idle_timeout),
        "tunnel_idle_timeout": format_duration(server.limits.tunnel_idle_timeout),
        "body_rate": server.limits.body_rate,
        "headers": server.limits.headers,
        "header_bytes": server.limits.header_bytes,
        "requests_per_connection": server.limits.requests_per_connection,
        "http2_streams": server.limits.http2_streams,
        "connections": server.limits.connections,
        "connections_per_address": server.limits.connections_per_address,
    });
    if let Some(body) = server.limits.body {
        limits["body"] = body.to_string().into();
    }
    if let Some(requests) = server.limits.requests {
        limits["requests"] = requests.into();
    }
    json!({
        "threads": server.threads,
        "compile_threads": server.compile_threads,
        "state_dir": server.state_dir.display().to_string(),
        "cache_dir": server.cache_dir.display().to_string(),
        "cache_size": server.cache_size,
        "instances": server.instances,
        "instance_memory": server.instance_memory,
        "key_value": match &server.key_value {
            KeyValueStore::Embedded => "embedded".into(),
            KeyValueStore::Redis(address) => json!({ "redis": format!("redis://{address}") }),
        },
        "drain": format_duration(server.drain),
        "drain_tunnels": format_duration(server.drain_tunnels),
        "watch": server.watch,
        "access_log": server.access_log.as_ref().map_or("off".into(), access_log),
        "trusted_proxies": texts(server.trusted_proxies.iter()),
        "limits": limits,
        "error_pages": policy::error_pages(&server.error_pages),
        "require_approval": require_approval(server.require_approval),
    })
}

fn require_approval(required: bool) -> Value {
    if required { "grants".into() } else { "nothing".into() }
}

fn listener(listener: &Listener) -> Value {
    let mut value = json!({
        "address": listener.address.to_string(),
        "proxy_protocol": listener.proxy_protocol,
        "h2c": listener.h2c,
    });
    if let Some(port) = listener.redirect_to_https {
        value["redirect_to_https"] = port.into();
    }
    if let Some(settings) = &listener.tls {
        value["tls"] = tls(settings);
    }
    value
}

fn tls(tls: &Tls) -> Value {
    let certificates = tls
        .certificates
        .iter()
        .map(|pair| json!({ "cert": pair.cert.display().to_string(), "key": pair.key.display().to_string() }));
    let alpn = tls.alpn.iter().map(|protocol| match protocol {
        Alpn::H2 => "h2",
        Alpn::Http1 => "http/1.1",
    });
    let mut value = json!({
        "certificates": certificates.collect::<Value>(),
        "min_version": match tls.min_version {
            TlsVersion::Tls12 => "1.2",
            TlsVersion::Tls13 => "1.3",
        },
        "alpn": alpn.collect::<Value>(),
        "handshake_timeout": format_duration(tls.handshake_timeout),
    });
    if let Some(auth) = &tls.client_auth {
        let mode = if auth.required { "required" } else { "optional" };
        value["client_auth"] = json!({ "ca": auth.ca.display().to_string(), "mode": mode });
    }
    if let Some(hsts) = &tls.hsts {
        value["hsts"] = json!({
            "days": hsts.max_age.as_secs() / 86_400,
            "include_subdomains": hsts.include_subdomains,
            "preload": hsts.preload,
        });
    }
    value
}

/// Returns an upstream's settings as they would be written in full.
#[must_use]
pub fn upstream(upstream: &Upstream) -> Value {
    let retries = &upstream.retries;
    let mut value = json!({
        "endpoints": match &upstream.endpoints_file {
            Some((path, _)) => json!({ "file": path.display().to_string() }),
            None => upstream.endpoints.iter().map(|(endpoint, weight)| match weight {
                1 => json!(endpoint.to_string()),
                weight => json!({ "address": endpoint.to_string(), "weight": weight }),
            }).collect::<Value>(),
        },
        "balance": match &upstream.balance {
            Balance::RoundRobin => json!("round_robin"),
            Balance::LeastRequests => json!("least_requests"),
            Balance::Hash(key) => json!({ "hash": key.iter().map(key_part).collect::<Value>() }),
        },
        "protocol": match upstream.protocol {
            UpstreamProtocol::Http1 => "http1",
            UpstreamProtocol::H2c => "h2c",
            UpstreamProtocol::H2 => "h2",
            UpstreamProtocol::Auto => "auto",
        },
        "timeouts": {
            "connect": format_duration(upstream.timeouts.connect),
            "read": format_duration(upstream.timeouts.read),
            "write": format_duration(upstream.timeouts.write),
            "idle": format_duration(upstream.timeouts.idle),
        },
        "retries": {
            "attempts": retries.attempts,
            "on": retries.statuses,
            "budget": retries.budget.to_string(),
            "backoff": format_duration(retries.backoff),
            "non_idempotent": retries.non_idempotent,
        },
        "keepalive_connections": upstream.keepalive_connections,
        "ejection": {
            "failures": upstream.ejection.failures,
            "for": format_duration(upstream.ejection.duration),
            "max": upstream.ejection.max.to_string(),
        },
        "panic": upstream.panic.to_string(),
    });
    if let Some(total) = upstream.timeouts.total {
        value["timeouts"]["total"] = format_duration(total).into();
    }
    if let Some(tls) = &upstream.tls {
        let mut map = Map::new();
        let mut put = |key: &str, text: Option<String>| drop(text.map(|text| map.insert(key.into(), text.into())));
        put("server_name", tls.server_name.clone());
        put("ca", tls.ca.as_ref().map(|(path, _)| path.display().to_string()));
        put("cert", tls.identity.as_ref().map(|identity| identity.cert.0.display().to_string()));
        put("key", tls.identity.as_ref().map(|identity| identity.key.0.display().to_string()));
        value["tls"] = if map.is_empty() { true.into() } else { map.into() };
    }
    if let Some(limits) = upstream_limits(&upstream.limits) {
        value["limits"] = limits;
    }
    if upstream.slow_start > Duration::ZERO {
        value["slow_start"] = format_duration(upstream.slow_start).into();
    }
    if let Some(health) = &upstream.health {
        value["health"] = self::health(health);
    }
    value
}

/// Returns an upstream's limits; none where there are none.
fn upstream_limits(limits: &UpstreamLimits) -> Option<Value> {
    let mut map = Map::new();
    map.extend(limits.requests.map(|max| ("requests".to_owned(), max.into())));
    map.extend(limits.connections_per_endpoint.map(|max| ("connections_per_endpoint".to_owned(), max.into())));
    if map.is_empty() {
        return None;
    }
    map.insert("pending".to_owned(), limits.pending.into());
    if limits.pending > 0 {
        map.insert("pending_timeout".to_owned(), format_duration(limits.pending_timeout).into());
    }
    Some(map.into())
}

fn health(health: &Health) -> Value {
    let mut value = json!({
        "interval": format_duration(health.interval),
        "timeout": format_duration(health.timeout),
        "healthy": health.healthy,
        "unhealthy": health.unhealthy,
    });
    value["check"] = match &health.check {
        HealthCheck::Http { path, host, statuses } => {
            value["path"] = path.clone().into();
            value["statuses"] = statuses.clone().into();
            if let Some(host) = host {
                value["host"] = host.clone().into();
            }
            "http".into()
        }
        HealthCheck::Grpc => "grpc".into(),
        HealthCheck::Tcp => "tcp".into(),
    };
    value
}

/// Returns grants in the form of a file.
#[must_use]
pub fn grants(grants: &Grants) -> Value {
    let outbound = grants.outbound.iter().map(|grant| {
        let mut value = json!({ "to": grant.to_string() });
        if grant.methods.is_empty() && grant.addresses.is_empty() {
            return value["to"].take();
        }
        if !grant.methods.is_empty() {
            value["methods"] = texts(grant.methods.iter());
        }
        if !grant.addresses.is_empty() {
            value["addresses"] = texts(grant.addresses.iter());
        }
        value
    });
    let upstreams = grants.upstreams.iter().map(|grant| {
        let mut value = json!({ "to": format!("upstream:{}", grant.name) });
        if grant.methods.is_empty() {
            return value["to"].take();
        }
        value["methods"] = texts(grant.methods.iter());
        value
    });
    let folders = grants.folders.iter().map(|folder| {
        json!({
            "path": literal(&folder.path.display().to_string()),
            "as": literal(&folder.seen_as),
            "write": folder.write,
        })
    });
    let mut value = json!({ "outbound": outbound.chain(upstreams).collect::<Value>() });
    if !grants.folders.is_empty() {
        value["folders"] = folders.collect();
    }
    if !grants.key_value.is_empty() {
        value["key_value"] = texts(grants.key_value.iter());
    }
    value
}

fn version(version: &FilterVersion) -> Map<String, Value> {
    Map::from_iter([
        ("component".into(), version.component.display().to_string().into()),
        ("settings".into(), version.settings_written.clone()),
        ("grants".into(), grants(&version.grants)),
    ])
}

fn function_version(version: &FunctionVersion) -> Map<String, Value> {
    Map::from_iter([
        ("component".into(), version.component.display().to_string().into()),
        ("vars".into(), version.vars_written.clone()),
        ("config".into(), version.config_written.clone()),
        ("grants".into(), grants(&version.grants)),
    ])
}

fn isolation(isolation: Isolation) -> Value {
    match isolation {
        Isolation::Request => "request".into(),
        Isolation::Reused { requests, memory } => {
            json!({ "reused": { "requests": requests, "memory": memory } })
        }
    }
}

fn policy(policy: &FilterPolicy, value: &mut Map<String, Value>) {
    let on_failure = match policy.on_failure {
        FailureMode::Closed => "closed".into(),
        FailureMode::Open => "open".into(),
        FailureMode::FallBack { failures, window } => {
            json!({ "fall-back": { "failures": failures, "window": format_duration(window) } })
        }
    };
    let FilterLimits {
        deadline,
        configure_deadline,
        memory,
        table_elements,
        copy,
        instances,
        body,
        key_value,
        key_value_entries,
    } = policy.limits;
    let limits = json!({
        "deadline": format_duration(deadline),
        "configure_deadline": format_duration(configure_deadline),
        "memory": memory,
        "table_elements": table_elements,
        "copy": copy,
        "instances": instances,
        "body": body,
        "key_value": key_value,
        "key_value_entries": key_value_entries,
    });
    value.insert("isolation".into(), isolation(policy.isolation));
    value.insert("on_failure".into(), on_failure);
    value.insert("limits".into(), limits);
}

fn route(route: &Route, config: &Config) -> Value {
    let mut matches = Map::new();
    if !route.matcher.hosts.is_empty() {
        matches.insert("host".into(), texts(route.matcher.hosts.iter()));
    }
    matches.insert("path".into(), route.matcher.path.to_string().into());
    if !route.matcher.methods.is_empty() {
        matches.insert("methods".into(), texts(route.matcher.methods.iter()));
    }
    if !route.matcher.headers.is_empty() {
        let headers = route.matcher.headers.iter().map(|header| {
            let value = header.value.as_ref().map_or(true.into(), |value| literal(value));
            (header.name.clone(), value)
        });
        matches.insert("headers".into(), headers.collect::<Map<_, _>>().into());
    }
    let upstream_name = |index: &usize| config.upstreams[*index].name.to_string();
    let mut value = json!({
        "match": matches,
        "filters": chain(route, config),
        "upgrades": texts(route.upgrades.iter()),
        "compress": route.compress.iter().map(|it| coding(*it)).collect::<Value>(),
        "grpc_web": route.grpc_web,
    });
    match &route.target {
        Target::Upstream { upstream, alternatives } => {
            value["upstream"] = upstream_name(upstream).into();
            value["alternatives"] = alternatives.iter().map(upstream_name).collect::<Value>();
        }
        Target::Function { function } => {
            value["function"] = config.functions[*function].name.to_string().into();
        }
        Target::Static(files) => value["static"] = static_folder(files),
        Target::Redirect(redirect) => value["redirect"] = policy::redirect(redirect),
        Target::Respond(response) => value["respond"] = policy::respond(response),
    }
    policy::policy(&route.policy, config, &mut value);
    // A default name is no name that may be written.
    if crate::text::check_name(&route.name).is_ok() {
        value["name"] = route.name.to_string().into();
    }
    value
}

fn chain(route: &Route, config: &Config) -> Value {
    let middleware = |before: usize| {
        route.middleware.iter().filter(move |link| link.after == before).map(|link| {
            let open = link.on_failure == FailureMode::Open;
            json!({
                "function": config.functions[link.function].name.to_string(),
                "on_failure": if open { "open" } else { "closed" },
            })
        })
    };
    let filters = route.filters.iter().enumerate();
    let filters =
        filters.flat_map(|(before, index)| middleware(before).chain([config.filters[*index].name.to_string().into()]));
    filters.chain(middleware(route.filters.len())).collect()
}

fn static_folder(files: &StaticFolder) -> Value {
    let mut value = json!({
        "folder": files.folder.display().to_string(),
        "index": files.index.iter().map(|name| literal(name)).collect::<Value>(),
        "precompressed": files.precompressed,
    });
    if let Some(fallback) = &files.fallback {
        value["fallback"] = literal(fallback);
    }
    if let Some(cache_control) = &files.cache_control {
        value["cache_control"] = literal(cache_control);
    }
    value
}

fn rollouts(config: &Config) -> Value {
    let rollouts = config.rollouts.iter().map(|rollout| {
        let mut value = match &rollout.subject {
            RolloutSubject::Filter { filter, canary } => json!({
                "filter": config.filters[*filter].name.to_string(),
                "canary": version(canary),
            }),
            RolloutSubject::Function { function, canary } => json!({
                "function": config.functions[*function].name.to_string(),
                "canary": function_version(canary),
            }),
            RolloutSubject::Upstream { upstream, canary } => json!({
                "upstream": config.upstreams[*upstream].name.to_string(),
                "canary": config.upstreams[*canary].name.to_string(),
            }),
        };
        moves(rollout, &mut value);
        value["key"] = rollout.key.iter().map(key_part).collect();
        value["salt"] = literal(&rollout.salt);
        if let Some(overriding) = &rollout.overriding {
            value["override"] = json!({ "header": overriding.header, "trusted": texts(overriding.trusted.iter()) });
        }
        (rollout.name.to_string(), value)
    });
    rollouts.collect::<Map<_, _>>().into()
}

fn moves(rollout: &Rollout, value: &mut Value) {
    let mut shadowed = false;
    match &rollout.plan {
        Plan::Weight(weight) => value["weight"] = weight.to_string().into(),
        Plan::Steps(steps) => {
            let steps = steps.iter().map(|step| {
                let hold = format_duration(step.hold);
                match step.stage {
                    Stage::Serve(weight) => json!({ "weight": weight.to_string(), "hold": hold }),
                    Stage::Shadow(sample) => {
                        shadowed = true;
                        json!({ "shadow": sample.to_string(), "hold": hold })
                    }
                }
            });
            value["steps"] = steps.collect();
        }
        Plan::Shadow => {
            shadowed = true;
            value["mode"] = "shadow".into();
        }
    }
    if let Some(watched) = &rollout.guard {
        value["guard"] = guard(watched, !matches!(rollout.subject, RolloutSubject::Upstream { .. }));
        value["on_bad"] = match rollout.on_bad {
            OnBad::RollBack => "roll_back",
            OnBad::Pause => "pause",
        }
        .into();
    }
    value["decider"] = match rollout.decider {
        Decider::Local => "local",
        Decider::External => "external",
    }
    .into();
    if shadowed {
        let ShadowLimits { sample, cpu, body } = rollout.shadow;
        value["shadow"] = json!({ "sample": sample, "cpu": cpu, "body": body });
    }
    if let Some(link) = &rollout.link {
        value["link"] = literal(link);
    }
}

fn guard(guard: &Guard, has_calls: bool) -> Value {
    let slowness = |slowness: &SlownessGuard| json!({ "quantile": slowness.quantile, "tolerance": slowness.tolerance });
    let or_off = |value: Option<Value>| value.unwrap_or_else(|| "off".into());
    let mut value = json!({
        "failures": or_off(guard.failures.as_ref().map(|failures| {
            json!({ "tolerance": failures.tolerance, "of": texts(failures.of.iter()) })
        })),
        "latency": or_off(guard.latency.as_ref().map(slowness)),
        "denials": or_off(guard.denials.map(|tolerance| json!({ "tolerance": tolerance }))),
        "confidence": guard.confidence,
        "min_requests": guard.min_requests,
        "stalled_after": format_duration(guard.stalled_after),
    });
    if has_calls {
        let mut calls = Map::new();
        calls.extend(guard.call_failures.map(|share| ("failures".to_owned(), share.to_string().into())));
        calls.extend(guard.call_duration.as_ref().map(|duration| ("duration".to_owned(), slowness(duration))));
        calls.extend(guard.call_memory.map(|share| ("memory".to_owned(), share.to_string().into())));
        value["calls"] = calls.into();
    }
    if let Some(agreement) = guard.agreement {
        value["agreement"] = agreement.to_string().into();
    }
    value
}

fn key_part(part: &KeyPart) -> Value {
    match part {
        KeyPart::Header(name) => json!({ "header": literal(name) }),
        KeyPart::Cookie(name) => json!({ "cookie": literal(name) }),
        KeyPart::Query(name) => json!({ "query": literal(name) }),
        KeyPart::ClientIp => "client_ip".into(),
        KeyPart::Path => "path".into(),
    }
}

const fn coding(coding: Coding) -> &'static str {
    match coding {
        Coding::Zstd => "zstd",
        Coding::Brotli => "br",
        Coding::Gzip => "gzip",
    }
}

fn texts<T: ToString>(items: impl Iterator<Item = T>) -> Value {
    items.map(|item| item.to_string()).collect()
}

/// Writes a text so that no variable is read from it.
fn literal(text: &str) -> Value {
    text.replace('$', "$$").into()
}
