//! The handler that the comparison builds by each toolchain, in Rust.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::StreamError;

wasip2::http::proxy::export!(Handler);

struct Handler;

impl Guest for Handler {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        match target.as_str() {
            "/echo" => respond(out, 200, &read(&request)),
            "/teapot" => respond(out, 418, b"short and stout\n"),
            _ => {
                let method = match request.method() {
                    Method::Get => "GET",
                    Method::Post => "POST",
                    Method::Put => "PUT",
                    _ => "OTHER",
                };
                let mut text = format!("{method} {target}\n").into_bytes();
                for value in request.headers().get("x-ask") {
                    text.extend([b"x-ask: ", &*value, b"\n"].concat());
                }
                respond(out, 200, &text);
            }
        }
    }
}

fn read(request: &IncomingRequest) -> Vec<u8> {
    let body = request.consume().expect("taken once");
    let stream = body.stream().expect("taken once");
    let mut whole = Vec::new();
    loop {
        match stream.blocking_read(65_536) {
            Ok(piece) => whole.extend(piece),
            Err(StreamError::Closed) => return whole,
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn respond(out: ResponseOutparam, status: u16, bytes: &[u8]) {
    let headers = [("content-type", "text/plain"), ("x-guest", "same")];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    let response = OutgoingResponse::new(Fields::from_list(&headers).expect("headers"));
    response.set_status_code(status).expect("a status");
    let body = response.body().expect("taken once");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("taken once");
    for piece in bytes.chunks(4096) {
        stream.blocking_write_and_flush(piece).expect("the client is there");
    }
    drop(stream);
    OutgoingBody::finish(body, None).expect("whole");
}
