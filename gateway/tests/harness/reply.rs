//! A response that has been read to its end.

use std::collections::BTreeMap;

use reqwest::{Response, StatusCode};

/// A response that has been read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    pub async fn read(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.expect("the body ends").to_vec();
        Self { status, headers, body }
    }

    /// A header's value; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("an ASCII value"))
    }

    /// All values of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().expect("an ASCII value")).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// What the echo upstream saw.
    pub fn seen(&self) -> Seen {
        // Filters may have put something after it.
        let mut values = serde_json::Deserializer::from_slice(&self.body).into_iter();
        values.next().and_then(Result::ok).unwrap_or_else(|| panic!("no echo in {self:?}"))
    }
}

/// What the echo upstream saw of a request.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub struct Seen {
    pub method: String,
    pub target: String,
    /// By name; several values are joined by `, `.
    pub headers: BTreeMap<String, String>,
    pub body_length: usize,
    /// XXH3 over the body.
    pub body_hash: u64,
}

impl Seen {
    /// A header's value; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}
