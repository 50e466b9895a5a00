//! `static` of a route.

use schemars::JsonSchema;
use serde::Deserialize;

use super::forms::OneOrMany;
use super::written::{FilePath, HeaderValue, Inside, Written};

/// A folder whose files answer requests. `GET` and `HEAD` only. What is not there, what begins with a dot (but for
/// `.well-known`) and what a link leads to outside of the folder is answered with 404.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Static {
    /// The folder. A relative path starts at the folder of this file. Of a route for `/below/*`, what follows `/below/`
    /// is looked up in it; of any other, the whole path.
    pub(crate) folder: Written<FilePath>,
    /// Names of the file that answers for a folder; the first that is there does.
    #[serde(default = "index")]
    #[schemars(extend("x-default" = "`index.html`"))]
    pub(crate) index: OneOrMany<Written<Inside>>,
    /// The file that answers, with 200, for a path that leads to none: the page of an application that routes by itself.
    /// Not for a path whose last segment has a dot, unless `text/html` is asked for: a missing script is not helped by a
    /// page.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) fallback: Option<Written<Inside>>,
    /// Whether `page.html.br`, `page.html.zst` or `page.html.gz` is sent in the place of `page.html` to whoever
    /// understands it.
    #[serde(default = "precompressed")]
    pub(crate) precompressed: Written<bool>,
    /// The header `cache-control` of files.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) cache_control: Option<Written<HeaderValue>>,
}

impl Static {
    /// Returns what a folder's path alone is short for.
    pub(crate) fn of(folder: Written<FilePath>) -> Self {
        Self { folder, index: index(), fallback: None, precompressed: precompressed(), cache_control: None }
    }
}

fn index() -> OneOrMany<Written<Inside>> {
    OneOrMany(vec![Written(Inside("index.html".into()))])
}

const fn precompressed() -> Written<bool> {
    Written(true)
}
