//! What a route asks for that needs no filter, as data.

use serde_json::{Map, Value, json};

use super::{key_part, literal, texts};
use crate::model::{
    Body, Config, Cors, ErrorPage, FixedResponse, HeaderEdits, PathRewrite, RateLimit, Redirect, RoutePolicy, Template,
};
use crate::units::format_duration;

/// Enters what a route asks for.
pub(super) fn policy(policy: &RoutePolicy, config: &Config, route: &mut Value) {
    let RoutePolicy {
        rate_limits,
        requests_max,
        body,
        decompress,
        timeouts,
        request_headers,
        response_headers,
        rewrite,
        cors,
        mirror,
        error_pages,
    } = policy;
    if let Some(decompress) = decompress {
        route["decompress"] = decompress.to_string().into();
    }
    let mut put = |key: &str, map: Map<String, Value>| {
        if !map.is_empty() {
            route[key] = map.into();
        }
    };
    let mut limits = Map::new();
    limits.extend(requests_max.map(|max| ("requests".to_owned(), max.into())));
    limits.extend(body.map(|max| ("body".to_owned(), max.to_string().into())));
    put("limits", limits);
    let durations = [("total", timeouts.total), ("response", timeouts.response)];
    let durations = durations.into_iter().filter_map(|(key, timeout)| Some((key, timeout?)));
    put("timeouts", durations.map(|(key, timeout)| (key.to_owned(), format_duration(timeout).into())).collect());
    let edited = [("request", request_headers), ("response", response_headers)];
    let edited = edited.into_iter().filter(|(_, edits)| **edits != HeaderEdits::default());
    put("headers", edited.map(|(key, edits)| (key.to_owned(), header_edits(edits))).collect());
    let mut rewritten = Map::new();
    match &rewrite.path {
        Some(PathRewrite::Prefix(prefix)) => drop(rewritten.insert("prefix".into(), literal(prefix))),
        Some(PathRewrite::Regex { pattern, to }) => {
            rewritten.insert("regex".into(), literal(pattern));
            rewritten.insert("to".into(), literal(to));
        }
        None => {}
    }
    rewritten.extend(rewrite.host.as_ref().map(|host| ("host".to_owned(), literal(host))));
    put("rewrite", rewritten);
    if !rate_limits.is_empty() {
        route["rate_limits"] = rate_limits.iter().map(rate_limit).collect();
    }
    if let Some(cors) = cors {
        route["cors"] = self::cors(cors);
    }
    if let Some(mirror) = mirror {
        route["mirror"] = json!({
            "upstream": config.upstreams[mirror.upstream].name.to_string(),
            "share": mirror.share,
            "body": mirror.body,
            "requests": mirror.requests_max,
        });
    }
    if !error_pages.is_empty() {
        route["error_pages"] = self::error_pages(error_pages);
    }
}

fn rate_limit(limit: &RateLimit) -> Value {
    json!({
        "name": limit.name,
        "requests": limit.requests,
        "per": format_duration(limit.per),
        "burst": limit.burst,
        "key": limit.key.iter().map(key_part).collect::<Value>(),
        "keys": limit.keys_max,
        "headers": limit.headers,
    })
}

fn header_edits(edits: &HeaderEdits) -> Value {
    let values = |edits: &[(String, Template)]| {
        let values = edits.iter().map(|(name, value)| (name.clone(), literal(&value.to_string())));
        values.collect::<Map<_, _>>()
    };
    json!({
        "set": values(&edits.set),
        "append": values(&edits.append),
        "remove": edits.remove.iter().map(|name| literal(name)).collect::<Value>(),
    })
}

fn cors(cors: &Cors) -> Value {
    json!({
        "origins": texts(cors.origins.iter()),
        "methods": texts(cors.methods.iter()),
        "headers": cors.headers.iter().map(|name| literal(name)).collect::<Value>(),
        "expose": cors.expose.iter().map(|name| literal(name)).collect::<Value>(),
        "credentials": cors.credentials,
        "max_age": format_duration(cors.max_age),
    })
}

/// Returns error pages.
pub(super) fn error_pages(pages: &[ErrorPage]) -> Value {
    let page = |page: &ErrorPage| {
        json!({
            "status": texts(page.statuses.iter()),
            "content_type": literal(&page.content_type),
            "body": body(&page.body),
        })
    };
    pages.iter().map(page).collect()
}

fn body(body: &Body) -> Value {
    match body {
        Body::Text(text) => literal(text),
        Body::File { path, .. } => json!({ "file": path.display().to_string() }),
    }
}

/// Returns where requests are sent.
pub(super) fn redirect(redirect: &Redirect) -> Value {
    json!({
        "to": literal(&redirect.to.to_string()),
        "status": redirect.status,
        "keep_query": redirect.keep_query,
    })
}

/// Returns a fixed response.
pub(super) fn respond(response: &FixedResponse) -> Value {
    let headers = response.headers.iter().map(|(name, value)| (name.clone(), literal(value)));
    let mut value = json!({ "status": response.status, "headers": headers.collect::<Map<_, _>>() });
    if let Some(body) = &response.body {
        value["body"] = self::body(body);
    }
    value
}
