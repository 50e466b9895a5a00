//! A *scenario* is a world with a canary in it; a *run* is one history of it, with every judge watching.

use std::sync::Arc;

use lockgate_judge::{Cap, Guard, Judge, Latencies, Period, Reading, Signal, latency};

use crate::checks::{self, Looking, Sprt};
use crate::world::{LIMIT, RATE, Random, USERS, WEIGHT, WINDOW_SECONDS, Zipf, mix, unit};

/// Stable's share of failures.
const STABLE: f64 = 0.01;

/// What is tolerated of failures.
const TOLERANCE: f64 = 0.005;

/// What is tolerated of the 99 % quantile.
const TOLERANCE_LATENCY: f64 = 0.05;

const CONFIDENCE: f64 = 0.99;

/// The client in a retry storm sends so many requests a second, all of which fail, for ten minutes.
const STORM_RATE: u64 = 50;
const STORM_SECONDS: std::ops::Range<u64> = 0..600;

/// An outage of the upstream takes this share of both tracks' requests for two minutes.
const OUTAGE_SHARE: f64 = 0.3;
const OUTAGE_SECONDS: std::ops::Range<u64> = 300..420;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Users {
    /// Each request comes from a user of its own.
    Own,
    /// Zipf's law.
    Zipf,
    /// The same, and each user has a share of failures of its own, exponentially distributed.
    Varied,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Storm {
    None,
    Canary,
    Stable,
}

#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// Whether a rollback is right.
    pub(crate) is_bad: bool,
    pub(crate) users: Users,
    pub(crate) cap: bool,
    pub(crate) canary: f64,
    pub(crate) storm: Storm,
    pub(crate) outage: bool,
    /// Compares latencies, not failures: those of the canary are stretched by this.
    pub(crate) latency: Option<f64>,
    pub(crate) runs: u64,
    pub(crate) requests: u64,
}

/// What became of one run.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    /// When the judge rolled back.
    pub(crate) judge: Option<Moment>,
    /// The counted canary request at which Wald's test did.
    pub(crate) sprt: Option<u64>,
    /// The seconds at which the fixed checks did.
    pub(crate) fixed: [Option<u64>; 3],
}

/// When a decision fell.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    /// Of all users, on both tracks.
    pub(crate) requests: u64,
    /// Of the canary's, all and those that the cap let count.
    pub(crate) canary: u64,
    pub(crate) counted: u64,
}

const BASE: Scenario = Scenario {
    name: "",
    text: "",
    is_bad: false,
    users: Users::Zipf,
    cap: true,
    canary: STABLE,
    storm: Storm::None,
    outage: false,
    latency: None,
    runs: 200,
    requests: 2_000_000,
};

/// Returns the scenarios' names.
pub(crate) fn names() -> Vec<&'static str> {
    all().iter().map(|scenario| scenario.name).collect()
}

/// Everything that is simulated. The first takes nearly all of the time.
pub(crate) fn all() -> Vec<Scenario> {
    let bad = Scenario { is_bad: true, canary: 0.05, runs: 1_000, requests: 3_000_000, ..BASE };
    vec![
        Scenario { name: "equal", text: "canary like stable", runs: 2_000, requests: 10_000_000, ..BASE },
        Scenario {
            name: "edge",
            text: "canary exactly at the edge, 1.5 %",
            canary: STABLE + TOLERANCE,
            users: Users::Own,
            cap: false,
            runs: 1_000,
            requests: 1_000_000,
            ..BASE
        },
        Scenario { name: "bad", text: "canary fails 5 %, each user once", users: Users::Own, cap: false, ..bad },
        Scenario { name: "bad-zipf", text: "canary fails 5 %", ..bad },
        Scenario {
            name: "varied",
            text: "canary like stable, users differ",
            users: Users::Varied,
            runs: 100,
            requests: 10_000_000,
            ..BASE
        },
        Scenario { name: "outage", text: "both tracks fail 30 % for 2 minutes", outage: true, ..BASE },
        Scenario { name: "storm", text: "one canary user retries for 10 minutes", storm: Storm::Canary, ..BASE },
        Scenario {
            name: "storm-uncapped",
            text: "the same, without the cap",
            storm: Storm::Canary,
            cap: false,
            ..BASE
        },
        Scenario {
            name: "hidden",
            text: "canary fails 5 %, one stable user retries",
            storm: Storm::Stable,
            runs: 200,
            ..bad
        },
        Scenario {
            name: "hidden-uncapped",
            text: "the same, without the cap",
            storm: Storm::Stable,
            cap: false,
            runs: 200,
            ..bad
        },
        Scenario {
            name: "slow",
            text: "canary's p99 is 10 % longer, tolerance 5 %",
            is_bad: true,
            users: Users::Own,
            cap: false,
            latency: Some(1.1),
            runs: 100,
            requests: 10_000_000,
            ..BASE
        },
        Scenario {
            name: "as-fast",
            text: "canary's p99 is stable's, tolerance 5 %",
            users: Users::Own,
            cap: false,
            latency: Some(1.0),
            runs: 100,
            requests: 10_000_000,
            ..BASE
        },
    ]
}

/// What runs share, or one thread uses again and again.
pub(crate) struct Workshop {
    zipf: Zipf,
    cap: Cap,
    /// Windows go on from run to run, so that the cap need not be cleared.
    window: u32,
    /// By 65,536 equally likely draws: the bucket of a latency.
    stable: Vec<u16>,
    slow: Vec<u16>,
}

impl Workshop {
    pub(crate) fn new() -> Self {
        Self {
            zipf: Zipf::new(USERS),
            cap: Cap::new(1 << 16, LIMIT),
            window: 1,
            stable: buckets(1.0),
            slow: buckets(1.1),
        }
    }
}

/// Latencies around 20 ms, log-normal with a deviation of a half.
fn buckets(factor: f64) -> Vec<u16> {
    let draw = |index: u32| {
        let micros = 20_000.0 * factor * (0.5 * normal_quantile((f64::from(index) + 0.5) / 65_536.0)).exp();
        u16::try_from(latency::bucket(micros as u64)).expect("there are fewer buckets")
    };
    (0..65_536).map(draw).collect()
}

/// Returns the standard normal quantile, by halving on the distribution function as a series (Marsaglia, 2004).
fn normal_quantile(level: f64) -> f64 {
    let below = |x: f64| {
        let (mut sum, mut term, mut odd) = (x, x, 1.0);
        while term.abs() > 1e-17 {
            odd += 2.0;
            term *= x * x / odd;
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
    };
    let (mut low, mut high) = (-6.0, 6.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if below(middle) < level { low = middle } else { high = middle }
    }
    low
}

fn judge(scenario: &Scenario) -> Judge {
    let signal = match scenario.latency {
        Some(_) => Signal::Quantile { name: Arc::from("latency"), quantile: 0.99, tolerance: TOLERANCE_LATENCY },
        None => Signal::Share { name: Arc::from("failures"), tolerance: TOLERANCE },
    };
    Judge::new(Guard { signals: vec![signal], confidence: CONFIDENCE, min_requests: 500 }).expect("the guard is sound")
}

/// Feeds the judge one request at a time, and asks after each.
struct Watching {
    judge: Judge,
    period: Period,
    moment: Moment,
    rolled_back: Option<Moment>,
}

impl Watching {
    fn new(scenario: &Scenario) -> Self {
        let judge = judge(scenario);
        let none = Reading::none(&judge.guard().signals[0]);
        let moment = Moment { requests: 0, canary: 0, counted: 0 };
        let period = Period { stable: vec![none.clone()], canary: vec![none] };
        Self { judge, period, moment, rolled_back: None }
    }

    fn count(&mut self, on_canary: bool, write: impl FnOnce(&mut Reading), clear: impl FnOnce(&mut Reading)) {
        if self.rolled_back.is_some() {
            return;
        }
        self.moment.counted += u64::from(on_canary);
        let track = if on_canary { &mut self.period.canary } else { &mut self.period.stable };
        write(&mut track[0]);
        self.judge.observe(&self.period).expect("it is of the guard");
        let track = if on_canary { &mut self.period.canary } else { &mut self.period.stable };
        clear(&mut track[0]);
        if self.judge.is_worse() {
            self.rolled_back = Some(self.moment);
        }
    }

    fn count_failure(&mut self, on_canary: bool, failed: bool) {
        let of = |requests, events| move |reading: &mut Reading| *reading = Reading::Share { requests, events };
        self.count(on_canary, of(1, u64::from(failed)), of(0, 0));
    }

    fn count_latency(&mut self, on_canary: bool, bucket: u16) {
        let write = |reading: &mut Reading| {
            if let Reading::Quantile(Latencies(counts)) = reading {
                counts.push((bucket, 1));
            }
        };
        let clear = |reading: &mut Reading| {
            if let Reading::Quantile(Latencies(counts)) = reading {
                counts.clear();
            }
        };
        self.count(on_canary, write, clear);
    }
}

/// Plays one run to its end: until all have rolled back, or no request is left.
pub(crate) fn run(scenario: &Scenario, seed: u64, workshop: &mut Workshop) -> Outcome {
    let mut random = Random::new(seed, 0);
    let salt = random.next();
    let is_canary = |user: u64| unit(mix(user ^ salt)) < WEIGHT;
    // Looked up, as hashing would take longer than all the rest.
    let of_users: Vec<(u64, bool, u64)> = match scenario.users {
        Users::Own => Vec::new(),
        Users::Zipf | Users::Varied => (0..workshop.zipf.users())
            .map(|user| {
                (
                    mix(mix(user ^ salt) ^ 1),
                    is_canary(user),
                    failure_bar(own_share(scenario, user ^ salt, is_canary(user))),
                )
            })
            .collect(),
    };
    let bars = [failure_bar(STABLE), failure_bar(scenario.canary)];
    // The client that will storm is on the track where it does harm.
    let storming =
        (workshop.zipf.users()..).find(|user| is_canary(*user) == (scenario.storm == Storm::Canary)).unwrap_or(0);
    let mut watching = Watching::new(scenario);
    let mut sprt = Sprt::new(STABLE + TOLERANCE, 0.05, 1.0 - CONFIDENCE);
    let mut fixed = checks::ALL.map(Looking::new);
    let quantile_bar = if scenario.latency.is_some() { told_quantile(workshop) } else { 0 };
    let slow = scenario.latency.is_some_and(|factor| factor > 1.0);

    for second in 0..scenario.requests / RATE {
        let window = workshop.window + (second / WINDOW_SECONDS) as u32;
        let outage = scenario.outage && OUTAGE_SECONDS.contains(&second);
        let storm = if scenario.storm != Storm::None && STORM_SECONDS.contains(&second) { STORM_RATE } else { 0 };
        for request in 0..RATE + storm {
            let (key, on_canary, bar) = if request >= RATE {
                (mix(storming ^ salt), scenario.storm == Storm::Canary, u64::MAX)
            } else if of_users.is_empty() {
                let key = random.next();
                let on_canary = unit(key) < WEIGHT;
                (key, on_canary, bars[usize::from(on_canary)])
            } else {
                of_users[workshop.zipf.draw(&mut random) as usize]
            };
            watching.moment.requests += 1;
            watching.moment.canary += u64::from(on_canary);
            let counts = !scenario.cap || workshop.cap.admit(key, window);
            if scenario.latency.is_some() {
                let table = if on_canary && slow { &workshop.slow } else { &workshop.stable };
                let bucket = table[(random.next() >> 48) as usize];
                watching.count_latency(on_canary, bucket);
                if on_canary {
                    // A quantile above its bar is a share of slow requests above 1 %.
                    fixed.iter_mut().for_each(|looking| looking.count(bucket > quantile_bar));
                }
                continue;
            }
            let failed = random.next() < bar || (outage && random.chance() < OUTAGE_SHARE);
            if counts {
                watching.count_failure(on_canary, failed);
            }
            if on_canary {
                fixed.iter_mut().for_each(|looking| looking.count(failed));
                if counts {
                    sprt.count(failed);
                }
            }
        }
        fixed.iter_mut().for_each(|looking| looking.second(second + 1));
        if watching.rolled_back.is_some() && fixed.iter().all(|looking| looking.gave_up.is_some()) {
            break;
        }
    }
    workshop.window += (scenario.requests / RATE / WINDOW_SECONDS) as u32 + 2;
    Outcome {
        judge: watching.rolled_back,
        sprt: sprt.decided.and_then(|(requests, is_worse)| is_worse.then_some(requests)),
        fixed: fixed.map(|looking| looking.gave_up),
    }
}

/// Returns the share of a user's requests that fail.
fn own_share(scenario: &Scenario, user: u64, on_canary: bool) -> f64 {
    let mean = if on_canary { scenario.canary } else { STABLE };
    if scenario.users == Users::Varied { (-mean * (1.0 - unit(mix(user ^ 2))).ln()).min(1.0) } else { mean }
}

/// Returns what a draw of 64 bits has to stay below, to fail.
fn failure_bar(share: f64) -> u64 {
    (share * u64::MAX as f64) as u64
}

/// Returns the bucket that holds the tolerated quantile: what a fixed check would have to be told.
fn told_quantile(workshop: &Workshop) -> u16 {
    let stable = workshop.stable[(0.99 * 65_536.0) as usize];
    let tolerated = latency::bound_micros(usize::from(stable)) as f64 * (1.0 + TOLERANCE_LATENCY);
    u16::try_from(latency::bucket(tolerated as u64)).unwrap_or(u16::MAX)
}
