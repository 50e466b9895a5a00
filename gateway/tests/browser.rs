//! A page in a real Chromium that comes through the gateway: by HTTP/2 over TLS, and calling gRPC from it.

mod harness;

#[path = "harness/browser.rs"]
mod browser;

use browser::Browser;
use harness::tls::Authority;
use harness::{Builder, Gateway, Upstream};
use serde_json::{Value, json};

const CONFIG: &str = r#"
server: { watch: false }
listeners:
  - { address: "127.0.0.1:0", tls: { certificates: [{ cert: default.pem, key: default.key }] } }
  - { address: "127.0.0.2:0", tls: { certificates: [{ cert: default.pem, key: default.key }] } }
upstreams:
  calls: { endpoints: ["${UPSTREAM}"], protocol: h2c }
  away: { endpoints: ["127.0.0.1:1"], protocol: h2c, retries: 0 }
routes:
  - { static: site }
  - upstream: calls
    match: { path: /grpc/*, methods: [POST] }
    grpc_web: true
    cors: &cors { origins: "*", headers: [content-type, x-grpc-web] }
  - { upstream: away, match: { path: /away/*, methods: [POST] }, cors: *cors }
  - { upstream: calls, match: { path: /closed/*, methods: [POST] }, grpc_web: true }
  - { upstream: calls, match: { path: /ticks/* }, compress: [br] }
"#;

/// Asks for a script, a style and a picture beside itself.
const PAGE: &str = r#"<!doctype html>
<html lang="en"><title>page</title><link rel="icon" href="data:,"><link rel="stylesheet" href="style.css">
<p id="said">nothing</p><img src="dot.svg" alt=""><script src="script.js"></script></html>
"#;

const SCRIPT: &str = r#"
document.querySelector('#said').innerText = 'script';
const framed = text => {
    const bytes = new TextEncoder().encode(text);
    const frame = new Uint8Array(5 + bytes.length);
    new DataView(frame.buffer).setUint32(1, bytes.length);
    frame.set(bytes, 5);
    return frame;
};
const frames = bytes => {
    const found = [];
    for (let at = 0; at < bytes.length;) {
        const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(at + 1);
        found.push([bytes[at], new TextDecoder().decode(bytes.subarray(at + 5, at + 5 + length))]);
        at += 5 + length;
    }
    return found;
};
// Pieces are padded each by itself.
const fromText = text => Uint8Array.from((text.match(/.{4}/g) ?? []).map(atob).join(''), c => c.charCodeAt(0));
const call = async (url, kind, text) => {
    const isText = kind.includes('-text');
    const body = isText ? btoa(String.fromCharCode(...framed(text))) : framed(text);
    const response = await fetch(url, { method: 'POST', headers: { 'content-type': kind, 'x-grpc-web': '1' }, body });
    const read = isText ? fromText(await response.text()) : new Uint8Array(await response.arrayBuffer());
    return { frames: frames(read), status: response.headers.get('grpc-status'), type: response.headers.get('content-type') };
};
"#;

/// A gateway with a site, and the address of each of its listeners: two origins.
async fn start(up: &Upstream) -> (Gateway, [String; 2]) {
    let builder = Builder::new(CONFIG).upstream(up);
    Authority::new().issue(&["example.com"]).write(builder.path(), "default");
    let site = builder.path().join("site");
    std::fs::create_dir(&site).unwrap();
    let picture = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1\" height=\"1\"/>";
    for (name, text) in
        [("index.html", PAGE), ("script.js", SCRIPT), ("style.css", "p { color: #123456 }"), ("dot.svg", picture)]
    {
        std::fs::write(site.join(name), text).unwrap();
    }
    let gateway = builder.start().await;
    let mut origins = [String::new(), String::new()];
    for (origin, listener) in origins.iter_mut().zip(["127.0.0.1:0", "127.0.0.2:0"]) {
        *origin = format!("https://{}", gateway.listener(listener).await);
    }
    (gateway, origins)
}

/// A browser that lets the harness's certificate pass.
async fn browser() -> Browser {
    Browser::start_with(&["--ignore-certificate-errors"]).await
}

#[tokio::test]
async fn a_page_and_all_of_it_come_by_http2_over_tls() {
    let up = Upstream::start().await;
    let (gateway, [origin, _]) = start(&up).await;
    let browser = browser().await;
    browser.goto(&format!("{origin}/")).await;
    browser.says("#said", "script").await;
    browser.until("getComputedStyle(document.querySelector('p')).color === 'rgb(18, 52, 86)'").await;
    browser.until("document.querySelector('img').naturalWidth === 1").await;
    let protocols = "return [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
        .filter(entry => entry.name.startsWith('https:')).map(entry => [new URL(entry.name).pathname, entry.nextHopProtocol]).sort()";
    let expected = json!([["/", "h2"], ["/dot.svg", "h2"], ["/script.js", "h2"], ["/style.css", "h2"]]);
    assert_eq!(browser.run(protocols).await, expected);
    let line = gateway.logged(|line| line["path"] == "/style.css").await;
    assert_eq!((&line["protocol"], &line["tls"]["version"]), (&"HTTP/2".into(), &"1.3".into()));

    // A stream that is compressed as it comes is read as it comes.
    let script = "window.read = '';
        fetch('/ticks/2').then(async response => {
            window.coding = response.headers.get('content-encoding');
            for await (const piece of response.body.pipeThrough(new TextDecoderStream())) window.read += piece;
            window.read += 'end';
        })";
    browser.run(script).await;
    for (index, read) in ["tick 0\n", "tick 0\ntick 1\nend"].into_iter().enumerate() {
        up.release(1);
        browser.until(&format!("window.read === {}", json!(read))).await;
        assert_eq!(browser.run("return window.coding").await, "br", "{index}");
    }
    browser.close().await;
}

#[tokio::test]
async fn a_page_calls_grpc_at_its_own_origin_and_at_another() {
    let up = Upstream::start().await;
    let (_gateway, [origin, other]) = start(&up).await;
    let browser = browser().await;
    browser.goto(&format!("{origin}/")).await;
    browser.says("#said", "script").await;
    let call = async |url: &str, kind: &str, text: &str| -> Value {
        browser.run(&format!("return call({}, {}, {})", json!(url), json!(kind), json!(text))).await
    };
    let trailers = "grpc-status:0\r\nx-trailer:kept\r\n";
    for url in ["/grpc/Echo".to_owned(), format!("{other}/grpc/Echo")] {
        for kind in ["application/grpc-web+proto", "application/grpc-web-text+proto"] {
            let answer = call(&url, kind, "hello, 世界").await;
            assert_eq!(answer["frames"], json!([[0, "hello, 世界"], [128, trailers]]), "{url}, {kind}");
            assert_eq!(answer["type"], kind, "{url}");
        }
    }
    // A call that fails at once tells so in its header, which the page may read; the gateway itself tells it in the body.
    let answer = call(&format!("{other}/grpc/refused"), "application/grpc-web+proto", "").await;
    assert_eq!((&answer["frames"], &answer["status"]), (&json!([]), &json!("9")));
    let answer = call(&format!("{other}/away/Call"), "application/grpc-web-text", "").await;
    assert_eq!(answer["frames"], json!([[128, "grpc-status:14\r\ngrpc-message:upstream unavailable\r\n"]]));
    // Without `cors`, the browser lets nothing through.
    let script =
        format!("return call('{other}/closed/Call', 'application/grpc-web+proto', '').catch(error => error.name)");
    assert_eq!(browser.run(&script).await, "TypeError");
    // Its console says so, which `close` would take for a slip.
    let _ = browser.client.clone().close().await;
}
