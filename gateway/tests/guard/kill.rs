//! kill -9, at any moment.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::harness::{Gateway, Upstream};
use super::{audited, rollout, tag, traffic};

/// How long killing goes on. Whatever is left of the climb then is left in peace.
const KILLING: Duration = Duration::from_secs(11);

/// Numbers that look random, and come again with the seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut next = self.0;
        next = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        next = (next ^ (next >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (next ^ (next >> 31)) % bound
    }
}

/// Waits until something is being written into the state directory, or two seconds.
async fn writing(gateway: &Gateway) {
    let state = gateway.path().join("state");
    let seen = || -> Vec<_> {
        let files = std::fs::read_dir(&state).into_iter().flatten().flatten();
        let mut files: Vec<_> =
            files.map(|file| (file.file_name(), file.metadata().and_then(|file| file.modified()).ok())).collect();
        files.sort();
        files
    };
    let (before, began) = (seen(), Instant::now());
    while seen() == before && began.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The moves of the rollout, in words, from its first.
async fn moves(gateway: &Gateway) -> Vec<Value> {
    let mut moves = audited(gateway, "begin").await;
    for action in ["step", "promote"] {
        moves.extend(audited(gateway, action).await);
    }
    moves
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "whoever finds a failure is to have it again")]
async fn killed_at_random_moments_a_rollout_goes_on_where_it_was_and_makes_each_move_once() {
    let seed = std::env::var("LOCKGATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64));
    println!("LOCKGATE_TEST_SEED={seed}");
    let mut dice = Dice(seed);

    let up = Upstream::start().await;
    let weights = ["20%", "30%", "40%", "50%", "60%", "80%", "100%"];
    let steps: Vec<String> = weights.iter().map(|weight| format!("{{ weight: {weight}, hold: 0s }}")).collect();
    let config = tag(&steps.join(", ")).replace("stalled_after: 1s", "stalled_after: 1h");
    let mut gateway = Gateway::start(&config, &up).await;
    let (began, mut kills, mut reached) = (Instant::now(), 0, 1);
    while began.elapsed() < KILLING && rollout(&gateway, "tag-2").await["state"] != "promoted" {
        // Half of the time while it writes, which is when there is something to tear.
        let (aimed, late) = (dice.below(2) == 0, Duration::from_millis(dice.below(30)));
        let anywhere = Duration::from_millis(200 + dice.below(1_600));
        let killing = async {
            if aimed {
                writing(&gateway).await;
                tokio::time::sleep(late).await;
            } else {
                tokio::time::sleep(anywhere).await;
            }
            gateway.signal(Signal::KILL);
        };
        traffic(&gateway, 0, killing).await;
        kills += 1;
        gateway.kill().await;
        gateway.launch().await;
        // It may have moved on between two looks at it, and a move is in the audit log just before it takes effect.
        let before = moves(&gateway).await.len();
        let view = rollout(&gateway, "tag-2").await;
        let after = moves(&gateway).await.len();
        let step = view["step"].as_u64().expect("it has steps") as usize;
        let made = step + usize::from(view["state"] == "promoted");
        assert!((before - 1..=after).contains(&made), "after kill {kills}: {before} to {after} moves, and {view}");
        assert!(made >= reached, "after kill {kills}: it had come to {reached}, and {view}");
        reached = made;
    }
    if rollout(&gateway, "tag-2").await["state"] != "promoted" {
        traffic(&gateway, 0, gateway.says("\"promote\"")).await;
    }
    assert!(kills >= 3, "{kills}");

    let made = moves(&gateway).await;
    let count = weights.len();
    let word = |index: usize| format!("ramping {}, step {} of {count}", weights[index], index + 1);
    let expected: Vec<String> = (0..count).map(word).chain(["promoted".to_owned()]).collect();
    let after: Vec<&str> = made.iter().filter_map(|entry| entry["after"].as_str()).collect();
    assert_eq!(after, expected, "{kills} kills");
    let before: Vec<&str> = made.iter().skip(1).filter_map(|entry| entry["before"].as_str()).collect();
    assert_eq!(before, expected[..count], "{kills} kills");
    assert_eq!(gateway.get("/").await.header("x-tag"), "v2");
}
