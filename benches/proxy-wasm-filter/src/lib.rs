//! The fixture `read-set` as a proxy-wasm filter: reads `user-agent` and sets `x-read-set` on the request, sets
//! `x-read-set` on the response.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

proxy_wasm::main! {{
    proxy_wasm::set_http_context(|_, _| Box::new(ReadSet));
}}

struct ReadSet;

impl Context for ReadSet {}

impl HttpContext for ReadSet {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let agent = self.get_http_request_header_bytes("user-agent").unwrap_or_default();
        self.set_http_request_header_bytes("x-read-set", Some(&agent));
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.set_http_response_header("x-read-set", Some("1"));
        Action::Continue
    }
}
