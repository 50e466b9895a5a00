//! The library's filter `access`, with a handful of rules and with 20,000: how many there are must not matter to a request.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;

use criterion::Criterion;
use lockgate_guests::Guest;
use lockgate_host::Silent;

use crate::now::now;
use crate::world::{ISOLATIONS, World, exchange};

const RULES: [u32; 2] = [10, 20_000];

/// Writes a rule, by its number. None is for the request.
type Rule = fn(u32) -> String;

/// The kinds of rules.
const KINDS: [(&str, Rule); 3] = [
    ("cidrs", |number| format!("198.{}.{}.0/24", 18 + (number >> 8), number & 255)),
    ("paths", |number| format!("/forbidden-{number}/things")),
    ("user_agents", |number| format!("unwelcome-robot-{number:05}")),
];

pub(crate) fn benches(criterion: &mut Criterion) {
    let world = World::new();
    let component = fs::read(Guest::Access.path()).expect("the guest");
    let mut exchange = exchange();

    let mut group = criterion.benchmark_group("access");
    for (kind, rule) in KINDS {
        for count in RULES {
            let mut settings = format!("{{\"deny\":{{\"{kind}\":[");
            for number in 0..count {
                let comma = if number > 0 { "," } else { "" };
                write!(settings, "{comma}\"{}\"", rule(number)).expect("a string takes everything");
            }
            settings.push_str("]}}");
            for (name, isolation) in ISOLATIONS {
                let filter = world.load_with("access", component.clone(), settings.clone(), isolation);
                filter.bind(Arc::new(Silent));
                group.bench_function(format!("{name}, {count} {kind}"), |bencher| {
                    bencher.iter(|| {
                        let mut instance = filter.acquire("stable").expect("an instance");
                        now(instance.on_request(&mut exchange)).expect("an outcome")
                    });
                });
            }
        }
    }
    group.finish();
}
