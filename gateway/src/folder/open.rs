//! Opens files below a folder, and none that a link leads to outside of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often an open is tried again when something on the way was renamed meanwhile.
const TRIES: usize = 8;

/// Without waiting: a pipe that lies in the folder would wait for a writer.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens a folder for [`below`]. Links on the way to it are the operator's, and followed.
pub(super) fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens what lies below a folder; none where there is nothing, nothing that may be read, or what a link leads to lies
/// outside.
pub(super) fn below(root: &OwnedFd, path: &Path) -> io::Result<Option<File>> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        opened = rustix::fs::openat2(root, path, READ, Mode::empty(), beneath);
        if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    // Kernels before 5.6, and sandboxes that do not know the call.
    if matches!(opened, Err(Errno::NOSYS)) {
        opened = step_by_step(root, path);
    }
    match opened {
        Ok(file) => Ok(Some(file.into())),
        Err(
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::ACCESS
            | Errno::PERM
            | Errno::XDEV
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::INVAL
            | Errno::NXIO,
        ) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The same without the kernel's help: one segment after the other, and no link at all.
fn step_by_step(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let mut folder: Option<OwnedFd> = None;
    let mut segments = path.components().peekable();
    while let Some(segment) = segments.next() {
        let here = folder.as_ref().map_or(root.as_fd(), AsFd::as_fd);
        let last = segments.peek().is_none();
        let flags = if last { READ } else { OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC };
        let next = rustix::fs::openat(here, segment.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty())?;
        if last {
            return Ok(next);
        }
        folder = Some(next);
    }
    Err(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_inside_of_the_folder_only() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        std::fs::create_dir_all(folder.join("below")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(folder.join("below/file"), "file").unwrap();
        symlink("below/file", folder.join("inside")).unwrap();
        symlink("../secret", folder.join("outside")).unwrap();
        symlink(dir.path().join("secret"), folder.join("absolute")).unwrap();
        symlink("..", folder.join("up")).unwrap();
        symlink(&folder, dir.path().join("link-to-folder")).unwrap();
        for root_path in [&folder, &dir.path().join("link-to-folder")] {
            let root = root(root_path).unwrap();
            let opens = |path: &str| below(&root, Path::new(path)).unwrap().is_some();
            assert!(opens("below/file") && opens("inside") && opens(""));
            for path in ["outside", "absolute", "up/secret", "../secret", "missing", "below/file/x"] {
                assert!(!opens(path), "{path}");
            }
            let steps = |path: &str| step_by_step(&root, Path::new(path)).is_ok();
            assert!(steps("below/file") && steps("below"));
            for path in ["inside", "outside", "absolute", "up/secret", "missing"] {
                assert!(!steps(path), "{path}");
            }
        }
    }

    #[test]
    fn a_pipe_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("pipe"), Mode::from(0o600)).unwrap();
        let root = root(dir.path()).unwrap();
        assert!(below(&root, Path::new("pipe")).unwrap().is_some_and(|file| !file.metadata().unwrap().is_file()));
    }
}
