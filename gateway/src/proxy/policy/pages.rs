//! What the gateway's own errors look like. The page is chosen by status, then by what the client says it accepts.

use bytes::{Bytes, BytesMut};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, StatusCode};
use lockgate_config::model::{ErrorPage, StatusPattern};

/// Pages, in the order of the configuration.
#[derive(Debug, Default)]
pub struct Pages(Box<[Page]>);

#[derive(Debug)]
struct Page {
    statuses: Box<[StatusPattern]>,
    content_type: HeaderValue,
    pieces: Box<[Piece]>,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(Bytes),
    Status,
    RequestId,
}

/// A page for an error.
#[derive(Debug)]
pub struct Found<'a>(&'a Page);

impl Pages {
    /// Returns the pages of a configuration. `read` has the bytes of files.
    pub fn new(pages: &[ErrorPage], read: impl Fn(&lockgate_config::model::Body) -> Bytes) -> Self {
        let page = |page: &ErrorPage| {
            Some(Page {
                statuses: page.statuses.clone().into(),
                content_type: HeaderValue::from_str(&page.content_type).ok()?,
                pieces: pieces(&read(&page.body)),
            })
        };
        Self(pages.iter().filter_map(page).collect())
    }

    /// Returns the page for an error that the client likes best; none where there is none for this status.
    pub fn find(&self, status: StatusCode, request: &HeaderMap) -> Option<Found<'_>> {
        let exact = StatusPattern::Exact(status.as_u16());
        let class = StatusPattern::Class((status.as_u16() / 100) as u8);
        [exact, class].into_iter().find_map(|wanted| {
            let mut best: Option<(u16, &Page)> = None;
            for page in self.0.iter().filter(|page| page.statuses.contains(&wanted)) {
                let liking = liking(request, &page.content_type);
                if best.is_none_or(|(most, _)| liking > most) {
                    best = Some((liking, page));
                }
            }
            best.map(|(_, page)| Found(page))
        })
    }
}

impl Found<'_> {
    /// Returns the header `content-type`.
    pub fn content_type(&self) -> HeaderValue {
        self.0.content_type.clone()
    }

    /// Returns the body. One allocation where something is filled in.
    pub fn body(&self, status: StatusCode, id: &str) -> Bytes {
        if let [Piece::Text(text)] = &*self.0.pieces {
            return text.clone();
        }
        let mut body = BytesMut::with_capacity(1024);
        for piece in &self.0.pieces {
            match piece {
                Piece::Text(text) => body.extend_from_slice(text),
                Piece::Status => body.extend_from_slice(status.as_str().as_bytes()),
                // It may be a client's, behind a proxy that passes on what it is told, and the page may be HTML.
                Piece::RequestId => body.extend(id.bytes().map(|byte| match byte {
                    b'-' | b'_' | b'.' | b':' | b'/' | b'+' | b'=' => byte,
                    byte if byte.is_ascii_alphanumeric() => byte,
                    _ => b'_',
                })),
            }
        }
        body.freeze()
    }
}

/// Cuts a body at its placeholders. Braces that stand for nothing stay: there are many in pages.
fn pieces(body: &Bytes) -> Box<[Piece]> {
    let mut pieces = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < body.len() {
        let found = [(&b"{status}"[..], Piece::Status), (&b"{request_id}"[..], Piece::RequestId)]
            .into_iter()
            .find(|(word, _)| body[at..].starts_with(word));
        let Some((word, piece)) = found else {
            at += 1;
            continue;
        };
        if start < at {
            pieces.push(Piece::Text(body.slice(start..at)));
        }
        pieces.push(piece);
        at += word.len();
        start = at;
    }
    if start < body.len() || pieces.is_empty() {
        pieces.push(Piece::Text(body.slice(start..)));
    }
    pieces.into()
}

/// Returns how much a client likes a kind of content, 0 to 1,000 (RFC 9110, section 12.5.1). One that says nothing likes
/// everything.
fn liking(request: &HeaderMap, content_type: &HeaderValue) -> u16 {
    let kind = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let main = kind.split(|byte| *byte == b'/').next().unwrap_or_default();
    let mut said = false;
    // The most special range that takes it decides.
    let mut best = (0, 0);
    for line in request.get_all(ACCEPT) {
        for range in line.as_bytes().split(|byte| *byte == b',') {
            said = true;
            let mut parameters = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let range = parameters.next().unwrap_or_default();
            let special = match range.strip_suffix(b"/*") {
                Some(b"*") => 1,
                Some(of) if of.eq_ignore_ascii_case(main) => 2,
                None if range.eq_ignore_ascii_case(kind) => 3,
                _ => continue,
            };
            let quality = parameters.find_map(|parameter| {
                parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q=")).map(thousandths)
            });
            if special > best.0 {
                best = (special, quality.unwrap_or(1_000));
            }
        }
    }
    if said { best.1 } else { 1_000 }
}

/// Reads `0.75`; what is no quality is none.
fn thousandths(text: &[u8]) -> u16 {
    let quality = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f32>().ok());
    quality.filter(|quality| (0.0..=1.0).contains(quality)).map_or(0, |quality| (quality * 1_000.0) as u16)
}

#[cfg(test)]
mod tests {
    use lockgate_config::model::Body;

    use super::*;

    fn pages() -> Pages {
        let page = |statuses: &[&str], content_type: &str, body: &str| ErrorPage {
            statuses: statuses.iter().map(|status| status.parse().unwrap()).collect(),
            content_type: content_type.into(),
            body: Body::Text(body.into()),
        };
        let pages = [
            page(&["5xx"], "text/html; charset=utf-8", "<style>p {color: red}</style> {status} {request_id}"),
            page(&["5xx", "429"], "application/json", "{\"status\": {status}}"),
            page(&["503"], "text/plain", "later"),
        ];
        Pages::new(&pages, |body| match body {
            Body::Text(text) => Bytes::from(text.clone()),
            Body::File { .. } => Bytes::new(),
        })
    }

    fn shown(status: u16, accept: &'static str) -> Option<String> {
        let status = StatusCode::from_u16(status).unwrap();
        let request = match accept {
            "" => HeaderMap::new(),
            accept => HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]),
        };
        let pages = pages();
        let body = pages.find(status, &request)?.body(status, "a<b>-1");
        Some(String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn the_page_for_a_status_goes_before_that_for_its_class() {
        assert_eq!(shown(503, "text/html").as_deref(), Some("later"));
        assert_eq!(shown(502, "").as_deref(), Some("<style>p {color: red}</style> 502 a_b_-1"));
        assert_eq!(shown(429, "text/html").as_deref(), Some("{\"status\": 429}"));
        assert_eq!(shown(404, ""), None);
    }

    #[test]
    fn of_several_pages_the_client_gets_what_it_likes_best() {
        let json = |accept| shown(500, accept).unwrap().starts_with("{\"");
        assert!(json("application/json") && json("text/html;q=0.5, application/*") && json("text/html;q=0, */*"));
        assert!(!json("text/html,application/xhtml+xml,*/*;q=0.8") && !json("*/*") && !json("image/png"));
    }
}
