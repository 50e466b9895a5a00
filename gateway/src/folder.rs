//! Answers requests with the files of a folder. Opening, asking about and reading files blocks, so all of it happens on
//! the runtime's blocking pool: a request that is answered by a small file goes there once. What is decided there is told
//! by an [`Answer`], whose body comes piece by piece, read one piece ahead of the client.
//!
//! The folder is looked up anew for each request, so that one that is replaced whole (a link that is moved to the next
//! release, say) serves from then on.

mod choose;
mod condition;
mod open;
mod pieces;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lockgate_config::model::{PathPattern, StaticFolder};

use choose::{Chosen, Wanted};
use condition::{Verdict, validators};
pub use pieces::Pieces;

/// Headers of a request that decide whether and which part of a file is sent.
const CONDITIONS: [http::HeaderName; 6] =
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE, RANGE];

/// A folder whose files answer a route.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    /// What the route's pattern says of a path, and is not looked up in the folder.
    prefix: Box<str>,
    index: Box<[String]>,
    fallback: Option<String>,
    precompressed: bool,
    cache_control: Option<HeaderValue>,
}

/// What a folder answers.
#[derive(Debug)]
pub enum Answer {
    /// With a file, or without one where the client has it already.
    File(Box<FileAnswer>),
    /// The path names a folder, without the `/` at its end.
    Redirect(HeaderValue),
    /// There is no such file.
    Nothing,
}

/// An answer that is about a file.
#[derive(Debug)]
pub struct FileAnswer {
    /// 200, 206, 304, 412 or 416.
    pub status: StatusCode,
    /// All headers, those of the framing included.
    pub headers: HeaderMap,
    /// The bytes that belong to it, how ever the request was made; none for 304, 412 and 416.
    pub body: Option<Pieces>,
    /// The file's path in the folder.
    pub name: String,
    /// How it is compressed.
    pub encoding: Option<&'static str>,
}

impl Folder {
    /// Returns the folder of a route whose paths are those of `pattern`.
    pub fn new(config: &StaticFolder, pattern: &PathPattern) -> Self {
        let prefix = match pattern {
            PathPattern::Prefix(prefix) => prefix.trim_end_matches('/'),
            PathPattern::Exact(_) | PathPattern::Template(_) => "",
        };
        Self {
            root: config.folder.clone(),
            prefix: prefix.into(),
            index: config.index.clone().into(),
            fallback: config.fallback.clone(),
            precompressed: config.precompressed,
            // The configuration has checked that it is one.
            cache_control: config.cache_control.as_ref().and_then(|value| HeaderValue::from_str(value).ok()),
        }
    }

    /// Answers a `GET` or a `HEAD`. `path` is normalised; with `whole`, neither a part nor a compressed form of a file
    /// will do.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub async fn answer(
        self: &Arc<Self>,
        method: &Method,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
        whole: bool,
    ) -> io::Result<Answer> {
        let Some(below) = path.strip_prefix(&*self.prefix) else { return Ok(Answer::Nothing) };
        let Some(wanted) = Wanted::new(below, headers, self.precompressed && !whole) else {
            return Ok(Answer::Nothing);
        };
        let mut conditions = HeaderMap::new();
        for name in CONDITIONS.iter().filter(|name| !(whole && matches!(**name, RANGE | IF_RANGE))) {
            if let Some(value) = headers.get(name) {
                conditions.insert(name, value.clone());
            }
        }
        let read = *method != Method::HEAD;
        let folder = Arc::clone(self);
        let redirect = format!("{path}/{}{}", if query.is_some() { "?" } else { "" }, query.unwrap_or_default());
        tokio::task::spawn_blocking(move || match folder.choose(&wanted)? {
            Chosen::File(file) => folder.about(file, &conditions, read).map(|about| Answer::File(Box::new(about))),
            Chosen::Folder => Ok(HeaderValue::try_from(redirect).map_or(Answer::Nothing, Answer::Redirect)),
            Chosen::Nothing => Ok(Answer::Nothing),
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Puts the answer about a file together, and reads its first piece.
    fn about(&self, file: choose::File, conditions: &HeaderMap, read: bool) -> io::Result<FileAnswer> {
        let (tag, modified) = validators(file.length, file.modified, file.encoding);
        let verdict = condition::judge(conditions, &tag, &modified, file.length);
        let mut headers = HeaderMap::with_capacity(10);
        condition::put(&mut headers, &tag, &modified);
        if let Some(value) = &self.cache_control {
            headers.insert(CACHE_CONTROL, value.clone());
        }
        if self.precompressed {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        let (status, range) = match verdict {
            Verdict::Whole => (StatusCode::OK, Some(0..file.length)),
            Verdict::Part(range) => {
                headers.insert(CONTENT_RANGE, text(format!("bytes {}-{}/{}", range.start, range.end - 1, file.length)));
                (StatusCode::PARTIAL_CONTENT, Some(range))
            }
            Verdict::NotModified => (StatusCode::NOT_MODIFIED, None),
            Verdict::Failed => (StatusCode::PRECONDITION_FAILED, None),
            Verdict::Unsatisfiable => {
                headers.insert(CONTENT_RANGE, text(format!("bytes */{}", file.length)));
                (StatusCode::RANGE_NOT_SATISFIABLE, None)
            }
        };
        let Some(range) = range else {
            return Ok(FileAnswer { status, headers, body: None, name: file.name, encoding: file.encoding });
        };
        headers.insert(CONTENT_TYPE, choose::content_type(&file.name));
        if let Some(encoding) = file.encoding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(CONTENT_LENGTH, range.end.saturating_sub(range.start).into());
        let body = Pieces::open(file.file, range, read)?;
        Ok(FileAnswer { status, headers, body: Some(body), name: file.name, encoding: file.encoding })
    }
}

/// Digits, and what ASCII we put between them.
fn text(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
