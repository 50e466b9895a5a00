//! Chooses the file that answers a path: the file itself, the index of a folder, or the fallback; and of it the form that
//! the client understands best.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::header::{ACCEPT, ACCEPT_ENCODING};
use http::{HeaderMap, HeaderValue};

use super::{Folder, open};

/// Codings with the endings of their files, the one that makes files smallest first.
const CODINGS: [(&str, &str); 3] = [("br", "br"), ("zstd", "zst"), ("gzip", "gz")];

/// What a request asks a folder for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Below the folder; empty for the folder itself.
    path: PathBuf,
    /// It ends with `/`.
    folder: bool,
    /// A page may answer for a file that is not there.
    page: bool,
    /// Indices into [`CODINGS`], the best first.
    codings: Vec<usize>,
}

impl Wanted {
    /// Returns what a path (normalised, without what the route's pattern says) asks for; none where no file could have
    /// that name, or none that is shown.
    pub(super) fn new(path: &str, headers: &HeaderMap, compressed: bool) -> Option<Self> {
        let folder = path.ends_with('/');
        let path = path.strip_prefix('/').unwrap_or(path);
        let mut below = PathBuf::new();
        let mut segments = path.split('/').peekable();
        let mut last_has_a_dot = false;
        let mut first = true;
        while let Some(segment) = segments.next() {
            if segment.is_empty() {
                // Normalised: only the last one can be.
                break;
            }
            let name = decoded(segment)?;
            let hidden = name.first() == Some(&b'.') && !(first && name == b".well-known");
            if hidden || name.contains(&b'/') || name.contains(&0) {
                return None;
            }
            last_has_a_dot = segments.peek().is_none() && name.contains(&b'.');
            below.push(OsStr::from_bytes(&name));
            first = false;
        }
        let accepts_pages = || {
            let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
            accepted.flat_map(|value| value.split(',')).any(|range| range.trim().starts_with("text/html"))
        };
        Some(Self {
            path: below,
            folder,
            page: !last_has_a_dot || accepts_pages(),
            codings: if compressed { accepted(headers) } else { Vec::new() },
        })
    }
}

/// What answers.
pub(super) enum Chosen {
    File(File),
    /// A folder that was asked for as if it were a file, and has an index.
    Folder,
    Nothing,
}

/// A file that answers.
#[derive(Debug)]
pub(super) struct File {
    pub(super) file: std::fs::File,
    pub(super) length: u64,
    pub(super) modified: SystemTime,
    /// In the folder, without the ending of a compressed form.
    pub(super) name: String,
    pub(super) encoding: Option<&'static str>,
}

enum Kind {
    File(std::fs::File, std::fs::Metadata),
    Folder,
    Neither,
}

impl Folder {
    /// Finds what answers. Blocks.
    pub(super) fn choose(&self, wanted: &Wanted) -> io::Result<Chosen> {
        let root = match open::root(&self.root) {
            Ok(root) => root,
            // Between two releases, say.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Chosen::Nothing),
            Err(error) => return Err(error),
        };
        if !wanted.folder {
            match kind(&root, &wanted.path)? {
                Kind::File(file, metadata) => return compressed(&root, &wanted.path, file, &metadata, &wanted.codings),
                Kind::Folder if self.index_of(&root, &wanted.path)?.is_some() => return Ok(Chosen::Folder),
                Kind::Folder | Kind::Neither => {}
            }
        } else if let Some((path, file, metadata)) = self.index_of(&root, &wanted.path)? {
            return compressed(&root, &path, file, &metadata, &wanted.codings);
        }
        match &self.fallback {
            Some(fallback) if wanted.page => match kind(&root, Path::new(fallback))? {
                Kind::File(file, metadata) => compressed(&root, Path::new(fallback), file, &metadata, &wanted.codings),
                Kind::Folder | Kind::Neither => Ok(Chosen::Nothing),
            },
            _ => Ok(Chosen::Nothing),
        }
    }

    fn index_of(
        &self,
        root: &OwnedFd,
        folder: &Path,
    ) -> io::Result<Option<(PathBuf, std::fs::File, std::fs::Metadata)>> {
        for name in &self.index {
            let path = folder.join(name);
            if let Kind::File(file, metadata) = kind(root, &path)? {
                return Ok(Some((path, file, metadata)));
            }
        }
        Ok(None)
    }
}

fn kind(root: &OwnedFd, path: &Path) -> io::Result<Kind> {
    let Some(file) = open::below(root, path)? else { return Ok(Kind::Neither) };
    let metadata = file.metadata()?;
    Ok(if metadata.is_file() {
        Kind::File(file, metadata)
    } else if metadata.is_dir() {
        Kind::Folder
    } else {
        Kind::Neither
    })
}

/// Chooses a compressed form of a file, or the file.
fn compressed(
    root: &OwnedFd,
    path: &Path,
    file: std::fs::File,
    metadata: &std::fs::Metadata,
    codings: &[usize],
) -> io::Result<Chosen> {
    let name = path.to_string_lossy().into_owned();
    for &coding in codings {
        let (encoding, ending) = CODINGS[coding];
        if let Kind::File(file, metadata) = kind(root, &path.with_added_extension(ending))? {
            let (length, modified) = (metadata.len(), metadata.modified()?);
            return Ok(Chosen::File(File { file, length, modified, name, encoding: Some(encoding) }));
        }
    }
    let (length, modified) = (metadata.len(), metadata.modified()?);
    Ok(Chosen::File(File { file, length, modified, name, encoding: None }))
}

/// Returns the codings that a request takes, the most wanted first; of those that are wanted alike, ours.
fn accepted(headers: &HeaderMap) -> Vec<usize> {
    let mut weights: [Option<f32>; CODINGS.len()] = [None; CODINGS.len()];
    let mut any = None;
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    for item in lines.flat_map(|line| line.split(',')) {
        let (coding, parameters) = item.split_once(';').unwrap_or((item, ""));
        let coding = coding.trim();
        let weight = parameters.trim().strip_prefix("q=").map_or(1.0, |q| q.trim().parse().unwrap_or(0.0));
        if coding == "*" {
            any = Some(weight);
        }
        let known = CODINGS.iter().position(|(name, _)| coding.eq_ignore_ascii_case(name));
        if let Some(index) = known {
            weights[index] = Some(weight);
        }
    }
    let weight = |index: &usize| weights[*index].or(any).unwrap_or(0.0);
    let mut codings: Vec<usize> = (0..CODINGS.len()).filter(|index| weight(index) > 0.0).collect();
    // Stable: what weighs the same stays in our order.
    codings.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
    codings
}

/// Returns the type that a file's ending says.
pub(super) fn content_type(name: &str) -> HeaderValue {
    let Some(raw) = mime_guess::from_path(name).first_raw() else {
        return HeaderValue::from_static("application/octet-stream");
    };
    let is_text = raw.starts_with("text/") || matches!(raw, "application/javascript" | "application/json");
    if !is_text || raw.contains("charset") {
        return HeaderValue::from_static(raw);
    }
    super::text(format!("{raw}; charset=utf-8"))
}

/// Returns a segment with its escapes resolved; none where one is no escape, which a normalised path rules out.
fn decoded(segment: &str) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            name.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        name.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(path: &str) -> Option<(String, bool)> {
        let wanted = Wanted::new(path, &HeaderMap::new(), true)?;
        Some((wanted.path.display().to_string(), wanted.folder))
    }

    #[test]
    fn a_path_becomes_a_file_or_a_folder_and_nothing_that_is_hidden() {
        let check = |path: &str, below: &str, folder: bool| {
            assert_eq!(wanted(path), Some((below.to_owned(), folder)), "{path}");
        };
        check("", "", false);
        check("/", "", true);
        check("/a", "a", false);
        check("/a/", "a", true);
        check("/a/b%20c.txt", "a/b c.txt", false);
        check("/a%5Cb", "a\\b", false);
        check("/%252e%252e/a", "%2e%2e/a", false);
        check("/.well-known/acme", ".well-known/acme", false);
        for path in ["/.env", "/a/.git/config", "/a%2Fb", "/%2e%2e/a", "/a/%2e./b", "/..%2Fa", "/a/.well-known/x"] {
            assert_eq!(wanted(path), None, "{path}");
        }
    }

    #[test]
    fn codings_are_taken_as_the_client_weighs_them() {
        let check = |accept: &'static str, expect: &[&str]| {
            let headers: HeaderMap = [(ACCEPT_ENCODING, HeaderValue::from_static(accept))].into_iter().collect();
            let names: Vec<_> = accepted(&headers).into_iter().map(|index| CODINGS[index].0).collect();
            assert_eq!(names, expect, "{accept}");
        };
        check("gzip, deflate, br, zstd", &["br", "zstd", "gzip"]);
        check("gzip;q=1.0, br;q=0.5", &["gzip", "br"]);
        check("br;q=0, *", &["zstd", "gzip"]);
        check("identity", &[]);
        check("gzip;q=nonsense", &[]);
        check("", &[]);
    }

    #[test]
    fn types_come_from_endings() {
        let of = |name| content_type(name).to_str().unwrap().to_owned();
        assert_eq!(of("a.html"), "text/html; charset=utf-8");
        assert_eq!(of("a.js"), "text/javascript; charset=utf-8");
        assert_eq!(of("a.json"), "application/json; charset=utf-8");
        assert_eq!(of("a.wasm"), "application/wasm");
        assert_eq!(of("a.PNG"), "image/png");
        assert_eq!(of("LICENSE"), "application/octet-stream");
    }
}
