//! Frames of HTTP/2 that break the protocol, or only look as if they did: sent as raw bytes, one case for each connection.
//! What must become of each stands in a table. The names of the cases are those of RFC 9113's sections; where the gateway
//! (Pingora, and below it the `h2` crate) does something else than the RFC asks for, the table says so, and why it may.

mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Gateway, Upstream};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const CONFIG: &str = r#"
server: { watch: false, limits: { header_bytes: 16KiB } }
upstreams: { app: ["${UPSTREAM}"] }
routes: [{ upstream: app }]
"#;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The stream of the request that finds out whether a connection still works.
const PROBE: u32 = 99;

/// What became of a case: the first thing that the gateway says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The connection is over, with a code. Nothing more is answered on it.
    GoAway(u32),
    /// The stream is over, with a code. The connection goes on.
    Reset(u32),
    /// An answer with a status. The connection goes on.
    Status(u16),
    /// A PING was answered. The connection goes on.
    Pong,
    /// The connection is over, without a word.
    Closed,
}

use Outcome::{Closed, GoAway, Pong, Reset, Status};

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block without a table and without Huffman's code.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

const ASKED: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/text/ok")];

/// A request that is whole, with more fields than it needs.
fn get(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[&ASKED, more].concat()))
}

/// A request that is whole, with just these fields.
fn with(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields))
}

/// A request whose body is still to come.
fn open(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    let asked = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/echo")];
    frame(HEADERS, END_HEADERS, stream, &block(&[&asked, more].concat()))
}

/// A request that is whole, and not answered before the upstream is told to.
fn held(stream: u32) -> Vec<u8> {
    let asked = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/hold")];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&asked))
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// What a header block begins with: the status is its first field.
fn status_in(block: &[u8]) -> u16 {
    // Its name stands in the static table, and the commonest statuses with it.
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // A change of the table's size may come before.
    let block = if block[0] & 0xe0 == 0x20 { &block[1..] } else { block };
    if let 0x88..=0x8e = block[0] {
        return INDEXED[usize::from(block[0] - 0x88)];
    }
    assert_eq!(block[0] & 0x0f, 8, "a literal whose name is `:status`: {block:?}");
    let value = &block[2..2 + usize::from(block[1] & 0x7f)];
    let digits = if block[1] & 0x80 == 0 { String::from_utf8(value.to_vec()).unwrap() } else { digits_in(value) };
    digits.parse().unwrap_or_else(|_| panic!("a status: {digits:?}"))
}

/// Three digits in Huffman's code: five bits for 0, 1 and 2, six for the others.
fn digits_in(value: &[u8]) -> String {
    let mut bits = value.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    let mut digits = String::new();
    while digits.len() < 3 {
        let five = bits.by_ref().take(5).fold(0, |all, bit| all << 1 | bit);
        let digit = if five <= 2 { five } else { (five << 1 | bits.next().unwrap()) - 0x19 + 3 };
        digits.push(char::from(b'0' + digit));
    }
    digits
}

/// A connection on which frames are sent and read.
struct Client(TcpStream);

impl Client {
    async fn connect(gateway: &Gateway) -> Self {
        Self(TcpStream::connect(gateway.http()).await.unwrap())
    }

    async fn send(&mut self, bytes: &[u8]) {
        // The gateway may have had enough in the middle of it; what it says of that is read all the same.
        let _ = self.0.write_all(bytes).await;
    }

    /// Reads a frame: kind, flags, stream, payload. None at the connection's end.
    async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }

    /// Reads on until something is decided, of one stream or of any.
    async fn outcome(&mut self, of: Option<u32>) -> Outcome {
        let decided = async {
            loop {
                let Some((kind, flags, stream, payload)) = self.frame().await else { return Closed };
                let concerns = of.is_none_or(|of| of == stream);
                let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
                match kind {
                    GOAWAY => return GoAway(code(4)),
                    RST_STREAM if concerns => return Reset(code(0)),
                    HEADERS if concerns => return Status(status_in(&payload)),
                    PING if flags & ACK != 0 => {
                        assert_eq!(payload, *b"a marker");
                        return Pong;
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), decided).await.expect("the gateway says something")
    }

    async fn is_closed(&mut self) -> bool {
        let rest = async { while self.frame().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(30), rest).await.is_ok()
    }
}

/// Cases that begin as every connection of HTTP/2 does. Where there are two outcomes the first is what the RFC asks for, and
/// the second what `h2` makes of it:
///
/// - `PROTOCOL_ERROR` in the place of another code: it has that one for whatever it cannot read. The connection ends either way.
/// - A connection that ends where its stream would be enough: 5.4.1 allows that.
/// - An answer to a request whose trailers are malformed: they are dropped, and the upstream sees none.
fn cases() -> Vec<(&'static str, Vec<u8>, &'static [Outcome])> {
    let ok = get(1, &[]);
    let then_ok = |bytes: Vec<u8>| [bytes, ok.clone()].concat();
    let [method, scheme, authority, path] = ASKED;
    vec![
        // 4.1 to 4.3: frames and header blocks.
        ("4.1: a type that is not known is ignored", then_ok(frame(0x16, 0xff, 0, b"what")), &[Status(200)]),
        ("4.1: so are flags that are not known", frame(PING, 0xfe & !ACK, 0, b"a marker"), &[Pong]),
        (
            "4.2: a frame longer than allowed",
            [open(1, &[]), frame(DATA, 0, 1, &[0; 16_385])].concat(),
            &[GoAway(FRAME_SIZE_ERROR)],
        ),
        (
            "4.3: an index that no table has",
            frame(HEADERS, 5, 1, &[0xff, 0xff, 0x03]),
            &[GoAway(COMPRESSION_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "4.3: a table larger than allowed",
            frame(HEADERS, 5, 1, &[0x3f, 0xff, 0xff, 0x7f]),
            &[GoAway(COMPRESSION_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "4.3: a header block that something comes between",
            {
                let begun = frame(HEADERS, END_STREAM, 1, &block(&ASKED));
                [begun, frame(PING, 0, 0, b"a marker")].concat()
            },
            &[GoAway(PROTOCOL_ERROR)],
        ),
        // 5.1: the life of a stream.
        ("5.1: DATA on a stream that is idle", frame(DATA, END_STREAM, 1, b"x"), &[GoAway(PROTOCOL_ERROR)]),
        ("5.1: RST_STREAM on a stream that is idle", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), &[GoAway(PROTOCOL_ERROR)]),
        (
            "5.1: WINDOW_UPDATE on a stream that is idle",
            frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 8]),
            &[GoAway(PROTOCOL_ERROR)],
        ),
        (
            "5.1: DATA on a stream that has ended",
            [held(1), frame(DATA, END_STREAM, 1, b"x")].concat(),
            &[Reset(STREAM_CLOSED), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "5.1: HEADERS on a stream that has ended",
            [held(1), held(1)].concat(),
            &[Reset(STREAM_CLOSED), GoAway(PROTOCOL_ERROR)],
        ),
        ("5.1.1: a stream of the server's", get(2, &[]), &[GoAway(PROTOCOL_ERROR)]),
        ("5.1.1: a stream lower than the last", [held(5), get(3, &[])].concat(), &[GoAway(PROTOCOL_ERROR)]),
        // 6: each type of frame.
        ("6.1: DATA on stream 0", frame(DATA, 0, 0, b"x"), &[GoAway(PROTOCOL_ERROR)]),
        (
            "6.1: padding longer than its frame",
            [open(1, &[]), frame(DATA, PADDED, 1, &[9, 0])].concat(),
            &[GoAway(PROTOCOL_ERROR)],
        ),
        ("6.2: HEADERS on stream 0", get(0, &[]), &[GoAway(PROTOCOL_ERROR)]),
        ("6.3: PRIORITY is ignored", then_ok(frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9])), &[Status(200)]),
        ("6.3: PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 3, 9]), &[GoAway(PROTOCOL_ERROR)]),
        ("6.4: RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]), &[GoAway(PROTOCOL_ERROR)]),
        (
            "6.4: RST_STREAM that is too short",
            [open(1, &[]), frame(RST_STREAM, 0, 1, &[0, 0, 8])].concat(),
            &[GoAway(FRAME_SIZE_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        ("6.5: SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), &[GoAway(PROTOCOL_ERROR)]),
        (
            "6.5: SETTINGS of a length that cannot be",
            frame(SETTINGS, 0, 0, &[0; 5]),
            &[GoAway(FRAME_SIZE_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "6.5: an ACK with something in it",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            &[GoAway(FRAME_SIZE_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        ("6.5.2: ENABLE_PUSH that is neither 0 nor 1", setting(2, 2), &[GoAway(PROTOCOL_ERROR)]),
        (
            "6.5.2: INITIAL_WINDOW_SIZE beyond the largest",
            setting(4, 1 << 31),
            &[GoAway(FLOW_CONTROL_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        ("6.5.2: MAX_FRAME_SIZE below the smallest", setting(5, 16_383), &[GoAway(PROTOCOL_ERROR)]),
        ("6.5.2: a setting that is not known is ignored", then_ok(setting(0xff, 7)), &[Status(200)]),
        (
            "6.6: PUSH_PROMISE from a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            &[GoAway(PROTOCOL_ERROR)],
        ),
        ("6.7: PING is answered", frame(PING, 0, 0, b"a marker"), &[Pong]),
        ("6.7: PING on a stream", frame(PING, 0, 1, b"a marker"), &[GoAway(PROTOCOL_ERROR)]),
        (
            "6.7: PING of another length",
            frame(PING, 0, 0, b"marker"),
            &[GoAway(FRAME_SIZE_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        ("6.8: GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), &[GoAway(PROTOCOL_ERROR)]),
        ("6.9: WINDOW_UPDATE of 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), &[GoAway(PROTOCOL_ERROR)]),
        (
            "6.9: WINDOW_UPDATE of 0 on a stream",
            [open(1, &[]), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
            &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "6.9: WINDOW_UPDATE that is too short",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            &[GoAway(FRAME_SIZE_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "6.9.1: a window beyond the largest",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            &[GoAway(FLOW_CONTROL_ERROR)],
        ),
        (
            "6.9.1: a stream's window beyond the largest",
            { [open(1, &[]), frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])].concat() },
            &[Reset(FLOW_CONTROL_ERROR)],
        ),
        (
            "6.10: CONTINUATION without HEADERS",
            frame(CONTINUATION, END_HEADERS, 1, &block(&ASKED)),
            &[GoAway(PROTOCOL_ERROR)],
        ),
        (
            "6.10: CONTINUATION without end",
            {
                let begun = frame(HEADERS, END_STREAM, 1, &block(&ASKED));
                let more = frame(CONTINUATION, 0, 1, &block(&[("x-long", "y")]).repeat(1_000));
                [begun, more.repeat(200)].concat()
            },
            &[GoAway(ENHANCE_YOUR_CALM)],
        ),
        // 8: requests.
        (
            "8.1: trailers that do not end the stream",
            { [open(1, &[]), frame(HEADERS, END_HEADERS, 1, &block(&[("x-trailer", "1")]))].concat() },
            &[Reset(PROTOCOL_ERROR)],
        ),
        (
            "8.1: a pseudo-header in trailers",
            { [open(1, &[]), frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[(":method", "GET")]))].concat() },
            &[Reset(PROTOCOL_ERROR), Status(200)],
        ),
        (
            "8.1.1: less body than announced",
            { [open(1, &[("content-length", "9")]), frame(DATA, END_STREAM, 1, b"less")].concat() },
            &[Reset(PROTOCOL_ERROR)],
        ),
        (
            "8.1.1: more body than announced",
            { [open(1, &[("content-length", "1")]), frame(DATA, END_STREAM, 1, b"more")].concat() },
            &[Reset(PROTOCOL_ERROR)],
        ),
        ("8.1.1: a body that was announced, and none", get(1, &[("content-length", "1")]), &[Reset(PROTOCOL_ERROR)]),
        ("8.2.1: an upper-case name", get(1, &[("X-Upper", "1")]), &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR)]),
        (
            "8.2.1: a line feed in a value",
            get(1, &[("x-value", "a\nb")]),
            &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        ("8.2.2: connection", get(1, &[("connection", "keep-alive")]), &[Reset(PROTOCOL_ERROR)]),
        ("8.2.2: transfer-encoding", get(1, &[("transfer-encoding", "chunked")]), &[Reset(PROTOCOL_ERROR)]),
        ("8.2.2: TE with something else than trailers", get(1, &[("te", "gzip")]), &[Reset(PROTOCOL_ERROR)]),
        ("8.2.2: TE with trailers", get(1, &[("te", "trailers")]), &[Status(200)]),
        (
            "8.3: a pseudo-header behind a header",
            with(&[method, scheme, ("x-a", "1"), authority, path]),
            &[Reset(PROTOCOL_ERROR)],
        ),
        (
            "8.3: a pseudo-header that is not known",
            with(&[method, scheme, authority, path, (":unknown", "1")]),
            &[Reset(PROTOCOL_ERROR), GoAway(PROTOCOL_ERROR)],
        ),
        (
            "8.3: a response's pseudo-header",
            with(&[method, scheme, authority, path, (":status", "200")]),
            &[Reset(PROTOCOL_ERROR)],
        ),
        ("8.3: a pseudo-header twice", with(&[method, method, scheme, authority, path]), &[Reset(PROTOCOL_ERROR)]),
        ("8.3.1: no method", with(&[scheme, authority, path]), &[Reset(PROTOCOL_ERROR)]),
        ("8.3.1: no scheme", with(&[method, authority, path]), &[Reset(PROTOCOL_ERROR)]),
        ("8.3.1: no path", with(&[method, scheme, authority]), &[Reset(PROTOCOL_ERROR)]),
        ("8.3.1: an empty path", with(&[method, scheme, authority, (":path", "")]), &[Reset(PROTOCOL_ERROR)]),
        (
            "10.5.1: a header longer than a limit",
            {
                let long = "y".repeat(100);
                let many: Vec<_> = (0..150).map(|_| ("x-long", long.as_str())).collect();
                let block = block(&[&ASKED[..], &many].concat());
                let (first, rest) = block.split_at(16_000);
                [frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)].concat()
            },
            &[Status(431)],
        ),
    ]
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_its_stream_or_connection_and_nothing_else() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let mut otherwise = BTreeMap::new();
    for (name, bytes, expected) in cases() {
        let mut client = Client::connect(&gateway).await;
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &bytes].concat()).await;
        let outcome = client.outcome(None).await;
        if !expected.contains(&outcome) {
            otherwise.insert(name, (outcome, expected));
            continue;
        }
        match outcome {
            GoAway(_) | Closed => assert!(client.is_closed().await, "{name}: the connection stays open"),
            Reset(_) | Status(_) | Pong => {
                client.send(&get(PROBE, &[])).await;
                assert_eq!(
                    client.outcome(Some(PROBE)).await,
                    Status(200),
                    "{name}: the connection is of no use any more"
                );
            }
        }
        assert_eq!(gateway.get("/").await.status, StatusCode::OK, "{name}: the next connection");
    }
    assert!(otherwise.is_empty(), "name: (outcome, expected) {otherwise:#?}");
}

#[tokio::test]
async fn a_connection_that_does_not_begin_as_it_should_is_refused() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for begin in [&b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..], b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n"] {
        let mut client = Client::connect(&gateway).await;
        client.send(&[begin, &frame(SETTINGS, 0, 0, &[]), &get(1, &[])].concat()).await;
        let mut answer = Vec::new();
        let _ = client.0.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(up.requests(), 0);
    assert_eq!(gateway.get("/").await.status, StatusCode::OK);
}
