//! The machine: limits of the system, and the clock.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use lockgate_config::model::Config;
use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::control::facts::Facts;
use crate::control::time::Timestamp;

/// File descriptors beside those of connections: listeners, the cache, logs, runtimes.
const FILES_BESIDE: u64 = 256;

/// Memory maps of an instance, as counted in `/proc/PID/maps`: the pool has two for each from the start (a stack and its
/// guard), and three more while it lives (of its memory the image, what has grown, and what is reserved).
const MAPS_PER_INSTANCE: u64 = 5;

/// Memory maps beside those of instances: threads, the allocator's, code of components. A hundred are usual; components
/// with several memories have more.
const MAPS_BESIDE: u64 = 4_096;

/// How long both clocks are compared.
const CLOCKS_COMPARED: Duration = Duration::from_millis(50);

/// Both clocks may differ by this much in that time: a clock that is adjusted runs at most a two-thousandth faster.
const CLOCKS_DIFFER: Duration = Duration::from_millis(10);

/// A certificate that ends this soon should have been renewed.
const RENEWAL: i64 = 14 * 86_400;

/// Looks at what the system allows, and at its clock.
pub(super) fn look(config: &Config, file: &Path, findings: &mut Vec<Finding>) {
    let limit = getrlimit(Resource::Nofile);
    findings.push(open_files(u64::from(config.server.limits.connections), limit.current, limit.maximum));
    let instances = u64::from(config.server.instances);
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    findings.extend(maps.and_then(|text| text.trim().parse().ok()).map(|maps| memory_maps(instances, maps)));
    let modified = std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
    findings.push(clock(modified, SystemTime::now()));
    findings.push(clocks());
}

/// Each connection of a client may need one to an upstream as well.
fn open_files(connections: u64, soft: Option<u64>, hard: Option<u64>) -> Finding {
    let needed = 2 * connections + FILES_BESIDE;
    let Some(soft) = soft.filter(|soft| *soft < needed) else {
        return Finding::good("open files", format!("{needed} may be needed, and are allowed"));
    };
    let what = format!("{soft} may be open, and {connections} connections need up to {needed}");
    let advice = match hard {
        Some(hard) if hard < needed => {
            format!(
                "allow more, with `LimitNOFILE={needed}` in the unit of systemd, or lower `server.limits.connections`"
            )
        }
        _ => {
            format!("`ulimit -n {needed}` before the gateway starts, or `LimitNOFILE={needed}` in the unit of systemd")
        }
    };
    Finding::doubtful("open files", what, advice)
}

fn memory_maps(instances: u64, allowed: u64) -> Finding {
    let needed = MAPS_PER_INSTANCE * instances + MAPS_BESIDE;
    if needed <= allowed {
        return Finding::good("memory maps", format!("{needed} may be needed, and {allowed} are allowed"));
    }
    let what = format!("{allowed} are allowed, and {instances} instances may need {needed}");
    let advice = format!("`sysctl -w vm.max_map_count={needed}`, or lower `server.instances`");
    Finding::doubtful("memory maps", what, advice)
}

/// A clock that is behind the configuration file is behind.
fn clock(modified: Option<SystemTime>, now: SystemTime) -> Finding {
    let time = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    };
    match modified.filter(|modified| now < *modified) {
        None => Finding::good("clock", format!("it is {}", time(now))),
        Some(modified) => {
            let what =
                format!("it is {} by the clock, and the configuration was written at {}", time(now), time(modified));
            Finding::bad("clock", what, "set the clock: certificates and the times in logs go by it")
        }
    }
}

/// Deadlines go by one clock, and what is written down by the other.
fn clocks() -> Finding {
    let (steady, wall) = (Instant::now(), SystemTime::now());
    std::thread::sleep(CLOCKS_COMPARED);
    let (steady, wall) = (steady.elapsed(), wall.elapsed().unwrap_or_default());
    let apart = steady.abs_diff(wall);
    if apart <= CLOCKS_DIFFER {
        return Finding::good("clocks", "the steady clock and the one of the wall go alike");
    }
    let what = format!("in {steady:?} by the steady clock, that of the wall went {wall:?}");
    Finding::doubtful("clocks", what, "the clock is being set: if it jumps again and again, see to its synchronisation")
}

/// Looks at the dates of the listeners' certificates.
pub(super) fn certificates(facts: &Facts, findings: &mut Vec<Finding>) {
    let now = i64::try_from(Timestamp::now().millis() / 1_000).unwrap_or(i64::MAX);
    for (listener, certificate) in facts.certificates() {
        let subject = format!("certificate `{}` of {listener}", certificate.file);
        findings.push(dates(subject, certificate.not_before, certificate.not_after, now));
    }
}

fn dates(subject: String, not_before: i64, not_after: i64, now: i64) -> Finding {
    let date = |seconds: i64| Timestamp::from_millis(u64::try_from(seconds).unwrap_or_default() * 1_000);
    let what = format!("it is valid from {} to {}", date(not_before), date(not_after));
    if now < not_before {
        Finding::bad(subject, what, "it is not valid yet: is this machine's clock right?")
    } else if not_after < now {
        Finding::bad(
            subject,
            what,
            "it has expired: put the renewed one in its place, and the gateway takes it by itself",
        )
    } else if not_after - now < RENEWAL {
        Finding::doubtful(subject, what, "it ends in less than two weeks: whatever renews it should have done so")
    } else {
        Finding::good(subject, what)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn limits_are_held_against_what_may_be_needed() {
        assert_eq!(open_files(20_000, Some(1_048_576), None).verdict, Verdict::Good);
        assert_eq!(open_files(20_000, None, None).verdict, Verdict::Good);
        let low = open_files(20_000, Some(1_024), Some(4_096));
        assert!(low.verdict == Verdict::Doubtful && low.advice.unwrap().contains("LimitNOFILE=40256"));
        let soft = open_files(20_000, Some(1_024), Some(1_048_576));
        assert!(soft.advice.unwrap().starts_with("`ulimit -n 40256`"));
        assert_eq!(memory_maps(1_000, 65_530).verdict, Verdict::Good);
        let low = memory_maps(50_000, 65_530);
        assert!(low.verdict == Verdict::Doubtful && low.advice.unwrap().contains("vm.max_map_count=254096"));
    }

    #[test]
    fn a_clock_behind_the_configuration_is_wrong() {
        let now = SystemTime::now();
        assert_eq!(clock(Some(now - Duration::from_secs(5)), now).verdict, Verdict::Good);
        assert_eq!(clock(Some(now + Duration::from_secs(5)), now).verdict, Verdict::Bad);
        assert_eq!(clock(None, now).verdict, Verdict::Good);
    }

    #[test]
    fn certificates_have_a_time_before_and_after() {
        let verdict = |not_before, not_after| dates("c".into(), not_before, not_after, 1_000_000_000).verdict;
        assert_eq!(verdict(0, 2_000_000_000), Verdict::Good);
        assert_eq!(verdict(0, 1_000_000_000 + 86_400), Verdict::Doubtful);
        assert_eq!(verdict(0, 999_999_999), Verdict::Bad);
        assert_eq!(verdict(1_000_000_001, 2_000_000_000), Verdict::Bad);
    }
}
