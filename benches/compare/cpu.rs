//! Cores, and the time that a process has spent on them.

use std::fs;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::Result;

/// Ticks in a second in what `/proc` tells: Linux gives every program this number, whatever its own clock does.
const TICKS_PER_SECOND: u32 = 100;

/// Moves this thread to a core. What it starts from then on stays there too.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(format!("there is no core {cpu}"));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| format!("cannot move to core {cpu}: {error}"))
}

/// Returns the core that this thread is on.
pub(crate) fn current() -> usize {
    sched_getcpu()
}

/// Returns the time that a process and its ended children have spent on any core, in user space and in the kernel.
pub(crate) fn time_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| format!("cannot read `{path}`: {error}"))?;
    ticks(&stat)
        .map(|ticks| Duration::from_secs(ticks) / TICKS_PER_SECOND)
        .ok_or_else(|| format!("`{path}` is not what proc(5) says: {stat}"))
}

/// The sum of `utime`, `stime`, `cutime` and `cstime`, fields 14 to 17.
fn ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, and may have anything in it. Field 3 is behind it.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<u64> =
        rest.split_ascii_whitespace().skip(11).take(4).map_while(|field| field.parse().ok()).collect();
    (fields.len() == 4).then(|| fields.iter().sum())
}

/// Returns the resident memory of a process, in MiB.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(|error| format!("cannot read `{path}`: {error}"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<f64>().ok())
        .map(|kib| kib / 1024.0)
        .ok_or_else(|| format!("`{path}` has no VmRSS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_found_behind_a_name_with_spaces_and_parentheses() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 3 2 20 0 1 0 100";
        assert_eq!(ticks(stat), Some(17));
        assert_eq!(ticks("42 (a) S 1 42"), None);
    }
}
