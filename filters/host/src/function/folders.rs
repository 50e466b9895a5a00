//! Folders that a function sees. Each is opened when the function is loaded, and stays the folder that it was then: what
//! is moved to its place later is another one, which nobody has granted.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::error::LoadError;
use crate::grants::FolderGrant;

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    opened: OwnedFd,
    seen_as: String,
    write: bool,
}

/// Opens what is granted.
///
/// # Errors
///
/// One of them is no folder, or may not be used so.
pub(super) fn open(grants: &[FolderGrant]) -> Result<Vec<Folder>, LoadError> {
    grants.iter().map(Folder::open).collect()
}

impl Folder {
    fn open(grant: &FolderGrant) -> Result<Self, LoadError> {
        let refuse = |problem: String| LoadError::Folder { seen_as: grant.seen_as.clone(), problem };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&grant.path, flags, Mode::empty())
            .map_err(|error| refuse(format!("cannot be opened: {}", std::io::Error::from(error))))?;
        if grant.write {
            rustix::fs::accessat(CWD, &grant.path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
                .map_err(|error| refuse(format!("cannot be written to: {}", std::io::Error::from(error))))?;
        }
        Ok(Self { opened, seen_as: grant.seen_as.clone(), write: grant.write })
    }

    /// Lets a guest see the folder.
    ///
    /// # Errors
    ///
    /// The process has no file descriptor left; what there is to say about it.
    pub(super) fn show(&self, wasi: &mut WasiCtxBuilder) -> Result<(), String> {
        // Wasmtime takes a path. This one leads to what is open here, whatever is at the granted path by now.
        let path = format!("/proc/self/fd/{}", self.opened.as_raw_fd());
        let perms = if self.write { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        match wasi.preopened_dir(path, &self.seen_as, perms) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("the folder `{}` is not there: {error:#}", self.seen_as)),
        }
    }
}
