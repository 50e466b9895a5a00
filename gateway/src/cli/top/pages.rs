//! What is shown of two looks: a table for each kind of thing.

use serde_json::Value;

use super::Look;
use super::samples::Samples;
use crate::cli::output::{count, size};

/// The pages, in their order.
pub(super) const PAGES: [&str; 4] = ["Routes", "Filters", "Rollouts", "Upstreams"];

/// Share of failures from which a line stands out, and from which it cries.
const FAILED_SOME: f64 = 0.001;
const FAILED_MANY: f64 = 0.05;

/// All pages.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// What holds for the gateway.
    pub(super) summary: String,
    pages: [Page; PAGES.len()],
}

/// A table.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Row>,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) head: &'static str,
    /// On a narrow terminal, columns with the highest rank go first; one with 0 stays.
    pub(super) rank: u8,
    /// Whether it holds numbers.
    pub(super) right: bool,
}

/// A line of a table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) cells: Vec<String>,
    pub(super) tone: Tone,
}

/// How a line stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// Nothing happens.
    Quiet,
    /// All is well.
    Normal,
    /// Worth a look.
    Warning,
    /// Something is wrong.
    Bad,
}

const fn name(head: &'static str) -> Column {
    Column { head, rank: 0, right: false }
}

const fn word(head: &'static str, rank: u8) -> Column {
    Column { head, rank, right: false }
}

const fn figure(head: &'static str, rank: u8) -> Column {
    Column { head, rank, right: true }
}

const ROUTES: &[Column] = &[
    name("ROUTE"),
    figure("REQ/S", 0),
    figure("FAILED", 0),
    figure("P50", 2),
    figure("P99", 1),
    figure("4XX", 3),
    figure("TOTAL", 4),
];
const FILTERS: &[Column] = &[
    name("FILTER"),
    word("VERSION", 3),
    word("TRACK", 1),
    figure("CALLS/S", 0),
    figure("FAILED", 0),
    figure("P50", 4),
    figure("P99", 2),
    figure("INSTANCES", 5),
    figure("MEMORY", 6),
];
const ROLLOUTS: &[Column] = &[
    name("ROLLOUT"),
    word("STATE", 1),
    figure("WEIGHT", 0),
    word("STEP", 3),
    word("VERDICT", 0),
    figure("STABLE/S", 5),
    figure("CANARY/S", 2),
    word("SUBJECT", 4),
];
const UPSTREAMS: &[Column] = &[
    name("UPSTREAM"),
    figure("HEALTHY", 0),
    figure("REQ/S", 0),
    figure("FAILED", 1),
    figure("P50", 3),
    figure("P99", 2),
    figure("RETRIES/S", 4),
    figure("UNDER WAY", 5),
    figure("PENDING", 6),
    figure("CONNECTIONS", 7),
];

impl Pages {
    /// Returns what happened between two looks.
    pub(super) fn between(before: &Look, now: &Look) -> Self {
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64();
        let between = Between { before: &before.samples, now: &now.samples, seconds };
        let status = &now.status;
        let page = |columns: &[Column], rows: Vec<Row>| Page { columns: columns.to_vec(), rows };
        Self {
            summary: summary(status, &between),
            pages: [
                page(ROUTES, routes(status, &between)),
                page(FILTERS, filters(status, &between).into_iter().chain(functions(status, &between)).collect()),
                page(ROLLOUTS, rollouts(status, &between)),
                page(UPSTREAMS, upstreams(status, &between)),
            ],
        }
    }

    pub(super) const fn all(&self) -> &[Page; PAGES.len()] {
        &self.pages
    }

    pub(super) const fn page(&self, index: usize) -> &Page {
        &self.pages[index]
    }
}

/// Two moments, and the time between them.
struct Between<'a> {
    before: &'a Samples,
    now: &'a Samples,
    seconds: f64,
}

impl Between<'_> {
    fn growth(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.now.growth(self.before, name, labels)
    }

    /// Returns what happens each second; none where no time has passed.
    fn rate(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.growth(name, labels) / self.seconds)
    }

    fn latency(&self, name: &str, labels: &[(&str, &str)], share: f64) -> String {
        self.now.quantile(self.before, name, labels, share).map(time).unwrap_or_default()
    }
}

fn summary(status: &Value, between: &Between<'_>) -> String {
    let up = status["uptime_seconds"].as_u64().unwrap_or(0);
    let up = match (up / 86_400, up / 3_600, up / 60) {
        (0, 0, 0) => format!("{up} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, _) => format!("{hours} h"),
        (days, ..) => count(days, "day"),
    };
    let mut parts = vec![
        format!("generation {}", status["generation"]),
        format!("up {up}"),
        format!("{} req/s", rate(between.rate("lockgate_requests_total", &[]))),
        count(between.now.sum("lockgate_connections", &[]) as u64, "connection"),
    ];
    let draining = status["draining"].as_array().map_or(0, Vec::len);
    if draining > 0 {
        parts.push(format!("{} draining", count(draining as u64, "old snapshot")));
    }
    if status["last_reload"]["outcome"] == "refused" {
        parts.push("last reload refused".to_owned());
    }
    let quarantined = status["quarantine"].as_array().map_or(0, Vec::len);
    if quarantined > 0 {
        parts.push(format!("{} in quarantine", count(quarantined as u64, "version")));
    }
    parts.join(", ")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn routes(status: &Value, between: &Between<'_>) -> Vec<Row> {
    // Requests that no route took are counted under a name that none can have.
    let names = list(status, "routes").iter().map(|route| text(route, "name")).chain(["(none)"]);
    let rows = names.map(|route| {
        let of = [("route", route)];
        let class = |class: &str| between.growth("lockgate_requests_total", &[("route", route), ("class", class)]);
        let all = between.growth("lockgate_requests_total", &of);
        let failed = class("5xx") + class("none");
        let total = between.now.sum("lockgate_requests_total", &of);
        let cells = [
            route.to_owned(),
            rate(between.rate("lockgate_requests_total", &of)),
            share(failed, all),
            between.latency("lockgate_request_duration_seconds", &of, 0.5),
            between.latency("lockgate_request_duration_seconds", &of, 0.99),
            share(class("4xx"), all),
            format!("{total:.0}"),
        ];
        (total, Row { cells: cells.into(), tone: tone(failed, all) })
    });
    rows.filter(|(total, row)| *total > 0.0 || row.cells[0] != "(none)").map(|(_, row)| row).collect()
}

/// Returns a line for each version that is loaded, on each track that it serves.
fn filters(status: &Value, between: &Between<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for filter in list(status, "filters") {
        for version in list(filter, "versions") {
            let (name, label) = (text(filter, "name"), text(version, "label"));
            for track in tracks(text(version, "role")) {
                let of = [("filter", name), ("version", label), ("track", track)];
                let failing = [("filter", name), ("version", label), ("track", track), ("outcome", "fail")];
                let (all, failed) = (
                    between.growth("lockgate_filter_calls_total", &of),
                    between.growth("lockgate_filter_calls_total", &failing),
                );
                let cells = [
                    name.to_owned(),
                    label.to_owned(),
                    track.to_owned(),
                    rate(between.rate("lockgate_filter_calls_total", &of)),
                    share(failed, all),
                    between.latency("lockgate_filter_duration_seconds", &of, 0.5),
                    between.latency("lockgate_filter_duration_seconds", &of, 0.99),
                    version["instances"].to_string(),
                    size(version["memory_bytes"].as_u64().unwrap_or(0)),
                ];
                let quarantined = version["quarantined"].is_string();
                let tone = if quarantined { Tone::Bad } else { tone(failed, all) };
                rows.push(Row { cells: cells.into(), tone });
            }
        }
    }
    rows
}

fn functions(status: &Value, between: &Between<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for function in list(status, "functions") {
        for version in list(function, "versions") {
            let (name, label) = (text(function, "name"), text(version, "label"));
            for track in tracks(text(version, "role")) {
                let of = [("function", name), ("version", label), ("track", track)];
                let failing = [("function", name), ("version", label), ("track", track), ("outcome", "fail")];
                let family = "lockgate_function_calls_total";
                let (all, failed) = (between.growth(family, &of), between.growth(family, &failing));
                let cells = [
                    format!("function {name}"),
                    label.to_owned(),
                    track.to_owned(),
                    rate(between.rate(family, &of)),
                    share(failed, all),
                    between.latency("lockgate_function_duration_seconds", &of, 0.5),
                    between.latency("lockgate_function_duration_seconds", &of, 0.99),
                    version["instances"].to_string(),
                    size(version["memory_bytes"].as_u64().unwrap_or(0)),
                ];
                rows.push(Row { cells: cells.into(), tone: tone(failed, all) });
            }
        }
    }
    rows
}

/// Returns the tracks that a version in a role serves.
fn tracks(role: &str) -> impl Iterator<Item = &'static str> {
    ["stable", "canary"].into_iter().filter(move |track| *track == role)
}

fn rollouts(status: &Value, between: &Between<'_>) -> Vec<Row> {
    let row = |rollout: &Value| {
        let name = text(rollout, "name");
        let on =
            |track: &str| rate(between.rate("lockgate_rollout_requests_total", &[("rollout", name), ("track", track)]));
        let (state, verdict) = (text(rollout, "state"), text(rollout, "verdict"));
        let cells = [
            name.to_owned(),
            state.to_owned(),
            text(rollout, "weight").to_owned(),
            crate::cli::rollout::step(rollout),
            verdict.to_owned(),
            on("stable"),
            on("canary"),
            text(rollout, "subject").to_owned(),
        ];
        let tone = match (state, verdict) {
            (_, "worse") | ("rolled-back", _) => Tone::Bad,
            ("stalled" | "paused" | "abandoned", _) => Tone::Warning,
            ("idle" | "promoted", _) => Tone::Quiet,
            _ => Tone::Normal,
        };
        Row { cells: cells.into(), tone }
    };
    list(status, "rollouts").iter().map(row).collect()
}

fn upstreams(status: &Value, between: &Between<'_>) -> Vec<Row> {
    let row = |upstream: &Value| {
        let name = text(upstream, "name");
        let of = [("upstream", name)];
        let endpoints = list(upstream, "endpoints");
        let usable = endpoints.iter().filter(|endpoint| text(endpoint, "state") == "usable").count();
        let sum = |key: &str| endpoints.iter().filter_map(|endpoint| endpoint[key].as_u64()).sum::<u64>();
        let class =
            |class: &str| between.growth("lockgate_upstream_requests_total", &[("upstream", name), ("class", class)]);
        let all = between.growth("lockgate_upstream_requests_total", &of);
        let failed = class("5xx") + class("none");
        let cells = [
            name.to_owned(),
            format!("{usable}/{}", endpoints.len()),
            rate(between.rate("lockgate_upstream_requests_total", &of)),
            share(failed, all),
            between.latency("lockgate_upstream_duration_seconds", &of, 0.5),
            between.latency("lockgate_upstream_duration_seconds", &of, 0.99),
            rate(between.rate("lockgate_upstream_retries_total", &of)),
            sum("requests").to_string(),
            upstream["pending"].as_u64().unwrap_or(0).to_string(),
            sum("connections").to_string(),
        ];
        let tone = match usable {
            0 => Tone::Bad,
            usable if usable < endpoints.len() => tone(failed, all).max_with(Tone::Warning),
            _ => tone(failed, all),
        };
        Row { cells: cells.into(), tone }
    };
    list(status, "upstreams").iter().map(row).collect()
}

impl Tone {
    fn max_with(self, other: Self) -> Self {
        if self as u8 > other as u8 { self } else { other }
    }
}

/// Returns how a line stands out by its failures.
fn tone(failed: f64, all: f64) -> Tone {
    match failed / all {
        _ if all <= 0.0 => Tone::Quiet,
        share if share >= FAILED_MANY => Tone::Bad,
        share if share >= FAILED_SOME => Tone::Warning,
        _ => Tone::Normal,
    }
}

/// Returns a rate with as many digits as one reads.
fn rate(rate: Option<f64>) -> String {
    match rate {
        None => String::new(),
        Some(rate) if rate < 9.95 => format!("{rate:.1}"),
        Some(rate) if rate < 9_999.5 => format!("{rate:.0}"),
        Some(rate) => format!("{:.1}k", rate / 1e3),
    }
}

/// Returns a share in per cent; nothing where there is nothing to have a share of.
fn share(part: f64, all: f64) -> String {
    match 100.0 * part / all {
        _ if all <= 0.0 => String::new(),
        0.0 => "0%".to_owned(),
        share if share < 9.95 => format!("{:.1}%", share.max(0.1)),
        share => format!("{share:.0}%"),
    }
}

/// Returns a time in the unit in which one would say it.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 9.995e-4 => format!("{:.0}us", seconds * 1e6),
        seconds if seconds < 9.95e-3 => format!("{:.1}ms", seconds * 1e3),
        seconds if seconds < 0.9995 => format!("{:.0}ms", seconds * 1e3),
        seconds => format!("{seconds:.1}s"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    /// Ten seconds of a gateway with one of everything.
    pub(in crate::cli::top) fn pages() -> Pages {
        let version = |role: &str, label: &str| json!({ "label": label, "role": role, "instances": 2, "memory_bytes": 2_097_152 });
        let status = json!({
            "generation": 3, "uptime_seconds": 7_300, "draining": [{}], "quarantine": [],
            "last_reload": { "outcome": "swapped" },
            "routes": [{ "name": "app" }, { "name": "GET api.example.com/users/{id}" }],
            "filters": [{ "name": "auth", "versions": [
                version("stable", "7ae9ca.26ee0c.e3b0c4"), version("canary", "7ae9ca.11aa0c.e3b0c4"), version("none", "old"),
            ] }],
            "functions": [{ "name": "hello", "versions": [version("stable", "0a1b2c.26ee0c.e3b0c4")] }],
            "rollouts": [
                { "name": "auth-2", "subject": "filter auth", "state": "ramping", "weight": "5%", "verdict": "undecided",
                  "step": 1, "steps": [{}, {}], "hold_left_seconds": 61.0 },
                { "name": "app-2", "subject": "upstream app", "state": "rolled-back", "weight": "0%", "verdict": "worse" },
            ],
            "upstreams": [{ "name": "app", "pending": 5, "endpoints": [
                { "state": "usable", "requests": 3, "connections": 4 },
                { "state": "ejected", "requests": 0, "connections": 1 },
            ] }],
        });
        let before = Samples::read("lockgate_requests_total{route=\"app\",class=\"2xx\"} 1000\n");
        let now = Samples::read(concat!(
            "lockgate_connections 12\n",
            "lockgate_requests_total{route=\"app\",class=\"2xx\"} 10000\n",
            "lockgate_requests_total{route=\"app\",class=\"4xx\"} 900\n",
            "lockgate_requests_total{route=\"app\",class=\"5xx\"} 100\n",
            "lockgate_request_duration_seconds_bucket{route=\"app\",le=\"0.001\"} 5000\n",
            "lockgate_request_duration_seconds_bucket{route=\"app\",le=\"0.1\"} 10000\n",
            "lockgate_request_duration_seconds_bucket{route=\"app\",le=\"+Inf\"} 10000\n",
            "lockgate_filter_calls_total{filter=\"auth\",version=\"7ae9ca.26ee0c.e3b0c4\",track=\"stable\",phase=\"on-request\",outcome=\"continue\"} 9500\n",
            "lockgate_filter_calls_total{filter=\"auth\",version=\"7ae9ca.11aa0c.e3b0c4\",track=\"canary\",phase=\"on-request\",outcome=\"continue\"} 450\n",
            "lockgate_filter_calls_total{filter=\"auth\",version=\"7ae9ca.11aa0c.e3b0c4\",track=\"canary\",phase=\"on-request\",outcome=\"fail\"} 50\n",
            "lockgate_filter_duration_seconds_bucket{filter=\"auth\",version=\"7ae9ca.26ee0c.e3b0c4\",track=\"stable\",phase=\"on-request\",le=\"0.00001\"} 9500\n",
            "lockgate_filter_duration_seconds_bucket{filter=\"auth\",version=\"7ae9ca.26ee0c.e3b0c4\",track=\"stable\",phase=\"on-request\",le=\"+Inf\"} 9500\n",
            "lockgate_rollout_requests_total{rollout=\"auth-2\",track=\"stable\"} 9500\n",
            "lockgate_rollout_requests_total{rollout=\"auth-2\",track=\"canary\"} 500\n",
            "lockgate_upstream_requests_total{upstream=\"app\",class=\"2xx\"} 9990\n",
            "lockgate_upstream_requests_total{upstream=\"app\",class=\"5xx\"} 10\n",
        ));
        let at = Instant::now();
        let before = Look { at, status: Value::Null, samples: before };
        Pages::between(&before, &Look { at: at + Duration::from_secs(10), status, samples: now })
    }

    #[test]
    fn what_happened_is_told_in_the_units_in_which_one_reads() {
        assert_eq!([0.04, 2.55, 255.0, 25_500.0].map(|it| rate(Some(it))), ["0.0", "2.5", "255", "25.5k"]);
        assert_eq!(rate(None), "");
        assert_eq!(
            [(0.0, 5.0), (1.0, 10_000.0), (1.0, 8.0)].map(|(part, all)| share(part, all)),
            ["0%", "0.1%", "12%"]
        );
        assert_eq!(share(0.0, 0.0), "");
        assert_eq!([0.000_012, 0.001_2, 0.050, 2.5].map(time), ["12us", "1.2ms", "50ms", "2.5s"]);
    }

    #[test]
    fn all_pages_are_text_for_scripts() {
        insta::assert_snapshot!(super::super::text(&pages()), @r"
        generation 3, up 2 h, 1000 req/s, 12 connections, 1 old snapshot draining

        Routes
        ROUTE                           REQ/S  FAILED  P50    P99   4XX   TOTAL
        app                             1000   1.0%    1.0ms  98ms  9.0%  11000
        GET api.example.com/users/{id}  0.0    -       -      -     -     0

        Filters
        FILTER          VERSION               TRACK   CALLS/S  FAILED  P50  P99   INSTANCES  MEMORY
        auth            7ae9ca.26ee0c.e3b0c4  stable  950      0%      5us  10us  2          2.0 MiB
        auth            7ae9ca.11aa0c.e3b0c4  canary  50       10%     -    -     2          2.0 MiB
        function hello  0a1b2c.26ee0c.e3b0c4  stable  0.0      -       -    -     2          2.0 MiB

        Rollouts
        ROLLOUT  STATE        WEIGHT  STEP              VERDICT    STABLE/S  CANARY/S  SUBJECT
        auth-2   ramping      5%      1 of 2, 61s left  undecided  950       50        filter auth
        app-2    rolled-back  0%      -                 worse      0.0       0.0       upstream app

        Upstreams
        UPSTREAM  HEALTHY  REQ/S  FAILED  P50  P99  RETRIES/S  UNDER WAY  PENDING  CONNECTIONS
        app       1/2      1000   0.1%    -    -    0.0        3          5        5
        ");
    }

    #[test]
    fn failures_make_a_line_stand_out() {
        let pages = pages();
        let tones = |page: usize| pages.page(page).rows.iter().map(|row| row.tone).collect::<Vec<_>>();
        assert_eq!(tones(0), [Tone::Warning, Tone::Quiet]);
        assert_eq!(tones(1), [Tone::Normal, Tone::Bad, Tone::Quiet]);
        assert_eq!(tones(2), [Tone::Normal, Tone::Bad]);
        assert_eq!(tones(3), [Tone::Warning]);
    }
}
