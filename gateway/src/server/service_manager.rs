//! Tells the service manager where we are (`sd_notify(3)`), and writes the process id where scripts look for it.

use std::io::{self, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Handle;
use tracing::warn;

/// Sends a state (`READY=1`) to the service manager, where there is one. A failure is logged: the gateway serves no worse
/// without.
pub(super) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        warn!(%error, state, "cannot tell the service manager");
    }
}

/// Tells the service manager that a reload begins; `READY=1` is its end. The time lets it tell this reload from an earlier
/// one.
pub(super) fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

/// Returns how often the service manager wants to hear of this process; none where it does not. A successor has the
/// variables of its predecessor, with that one's process id.
pub(super) fn watchdog(successor: bool) -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    interval(variable("WATCHDOG_USEC")?.as_str(), variable("WATCHDOG_PID").filter(|_| !successor).as_deref())
}

/// Half of what is asked for, so that one that comes late is not too late.
fn interval(micros: &str, pid: Option<&str>) -> Option<Duration> {
    let meant = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let micros: u64 = micros.parse().ok().filter(|micros| *micros > 0 && meant)?;
    Some(Duration::from_micros(micros) / 2)
}

/// Says again and again that this process is alive: that both its halves still do what they are given. Where one does
/// not, it falls silent, and the service manager does what it was told to.
pub(super) async fn say_alive(every: Duration, data_runtime: Handle) {
    let mut clock = tokio::time::interval(every);
    loop {
        clock.tick().await;
        if data_runtime.spawn(async {}).await.is_ok() {
            notify("WATCHDOG=1");
        }
    }
}

/// A file with the process id of the one who serves; removed on drop if it still is ours.
#[derive(Debug)]
pub(super) struct PidFile(PathBuf);

impl PidFile {
    /// Writes the id of this process, in the place of another's if there is one: after a hand-over the successor's
    /// replaces its predecessor's.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write(path: &Path) -> io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".tmp");
        let temporary = PathBuf::from(name);
        let mut file = std::fs::File::create(&temporary)?;
        writeln!(file, "{}", std::process::id())?;
        std::fs::rename(&temporary, path)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let ours = std::fs::read_to_string(&self.0).is_ok_and(|text| text.trim() == std::process::id().to_string());
        if ours {
            // Whoever removed it first wanted the same.
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_heeded_twice_as_often_as_it_asks_where_it_means_this_process() {
        let own = std::process::id().to_string();
        assert_eq!(interval("30000000", Some(&own)), Some(Duration::from_secs(15)));
        assert_eq!(interval("30000000", None), Some(Duration::from_secs(15)));
        assert_eq!(interval("30000000", Some("1")), None);
        assert_eq!(interval("0", None), None);
        assert_eq!(interval("soon", None), None);
    }

    #[test]
    fn the_file_goes_with_its_process_but_not_with_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lockgate.pid");
        let file = PidFile::write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!path.exists());

        let file = PidFile::write(&path).unwrap();
        std::fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists());
    }
}
