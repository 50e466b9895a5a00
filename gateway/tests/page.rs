//! The page, in a real Chromium: what a person sees of a rollout, and does about it.

mod harness;

#[path = "harness/browser.rs"]
mod browser;

use browser::Browser;
use fantoccini::key::Key;
use harness::{Builder, Gateway, Upstream};
use lockgate_guests::Guest;
use reqwest::StatusCode;
use serde_json::{Value, json};

const CONFIG: &str = r#"
upstreams: { app: ["${UPSTREAM}"] }
filters: { tag: { component: filters/tag.wasm, settings: { value: v1 } } }
routes: [{ filters: [tag], upstream: app }]
rollouts:
  tag-2: { filter: tag, canary: { settings: { value: v2 } }, weight: 5%, key: [{ header: x-user-id }, client_ip] }
"#;

const STATE: &str = "[data-rollout='tag-2'] [data-part='state']";
const WEIGHT: &str = "[data-rollout='tag-2'] [data-part='weight']";
const ROLL_BACK: &str = "[data-rollout='tag-2'] [data-action='rollback']";

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_watched_as_it_moves_and_rolled_back_by_the_button() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let browser = Browser::start().await;
    browser.open(&gateway).await;
    browser.says(STATE, "ramping").await;
    browser.says(WEIGHT, "5").await;
    browser.says("#link", "live").await;
    browser.run("window.same = true").await;

    // Somebody else moves it, and users come.
    let (status, said) = gateway.cli(&["rollout", "set", "tag-2", "35%"]).await;
    assert!(status.success(), "{said}");
    browser.says(WEIGHT, "35").await;
    browser.says("#activity", "set-weight").await;
    for user in 0..60 {
        gateway.get_with("/", "x-user-id", &format!("user-{user}")).await;
    }
    browser.says("[data-rollout='tag-2'] .tracks .canary + .label + .soft", "requests").await;
    browser.until("!document.querySelector('[data-rollout] .tracks').innerText.includes('\\n0 requests')").await;
    for chart in ["traffic", "failures", "latency"] {
        let label = format!("document.querySelector('[data-chart={chart}] svg[role=img]')?.ariaLabel");
        browser.until(&format!("{label}?.includes('stable') && {label}.includes('canary')")).await;
    }
    browser.says("#filters", "stable").await;

    // The confirmation names both versions; leaving it changes nothing.
    let view: Value = gateway.admin(reqwest::Method::GET, "/api/v1/rollouts/tag-2", None).await.text().parse().unwrap();
    browser.click(ROLL_BACK).await;
    for version in ["stable", "canary"] {
        browser.says(&format!("#ask-{version}"), view[version].as_str().unwrap()).await;
    }
    browser.click("#ask [data-action='cancel']").await;
    browser.until("!document.querySelector('#ask').open").await;
    gateway.settles("lockgate_rollout_weight_ratio", &[], 0.35).await;

    // What people write is text, whatever it looks like.
    browser.click(ROLL_BACK).await;
    let why = "logins fail <img src=x onerror='window.same = false'>";
    browser.find("#ask-why input").await.send_keys(why).await.unwrap();
    browser.click("#ask-yes").await;
    browser.says(STATE, "rolled back").await;
    browser.says("[data-rollout='tag-2'] [data-part='verdict']", why).await;
    assert_eq!(gateway.get_with("/", "x-user-id", "user-1").await.header("x-tag"), "v1");
    let audit = gateway.admin(reqwest::Method::GET, "/api/v1/audit?last=1", None).await.text();
    assert!(audit.contains("roll-back") && audit.contains("logins fail"), "{audit}");

    // All of it without loading the page again.
    assert_eq!(browser.run("return window.same").await, json!(true));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_can_be_done_by_keyboard() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let browser = Browser::start().await;
    browser.open(&gateway).await;
    browser.says(STATE, "ramping").await;
    let enter = char::from(Key::Enter).to_string();

    browser.tab_to("[data-rollout='tag-2'] [data-action='weight']").await;
    browser.press(&enter).await;
    browser.until("document.activeElement.name === 'weight'").await;
    // What is refused is said where it was asked.
    browser.press("150").await;
    browser.press(&enter).await;
    browser.says("#ask-problem", "no weight").await;
    browser.run("document.activeElement.select()").await;
    browser.press("50").await;
    browser.press(&enter).await;
    browser.says(WEIGHT, "50").await;
    // The page was drawn anew, and the focus is where it was.
    browser.until("document.activeElement.matches('[data-action=weight]')").await;

    browser.tab_to("[data-rollout='tag-2'] [data-action='promote']").await;
    browser.press(&enter).await;
    browser.until("document.querySelector('#ask').open").await;
    browser.press(&char::from(Key::Escape).to_string()).await;
    browser.until("!document.querySelector('#ask').open").await;
    browser.press(&enter).await;
    browser.tab_to("#ask-yes").await;
    browser.press(&enter).await;
    browser.says(STATE, "promoted").await;
    assert_eq!(gateway.get("/").await.header("x-tag"), "v2");
    // A call that was refused is an error to the browser's console; that one was meant.
    let _ = browser.client.clone().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ladder_shows_where_a_rollout_is_and_it_is_paused_and_resumed() {
    let up = Upstream::start().await;
    let steps = "steps: [{ weight: 5%, hold: 2h }, { weight: 50%, hold: 1h }, 100%]";
    let gateway = Gateway::start(&CONFIG.replace("weight: 5%", steps), &up).await;
    let browser = Browser::start().await;
    browser.open(&gateway).await;
    let now = ".ladder [aria-current='step']";
    browser.says(now, "5").await;
    browser.says(now, "left").await;
    browser.until("document.querySelectorAll('.ladder li').length === 3").await;
    browser.says(".ladder li:nth-child(2)", "1 h").await;

    browser.click("[data-rollout='tag-2'] [data-action='pause']").await;
    browser.says(STATE, "paused").await;
    browser.says(now, "paused").await;
    browser.click("[data-rollout='tag-2'] [data-action='resume']").await;
    browser.says(STATE, "ramping").await;
    browser.says(now, "left").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_abandoned_by_the_button_and_a_function_is_shown_with_its_calls() {
    let up = Upstream::start().await;
    let config = r#"
functions: { fn: { component: filters/function.wasm, vars: { VERSION: v1 } } }
routes: [{ function: fn }]
rollouts:
  fn-2: { function: fn, canary: { vars: { VERSION: v2 } }, weight: 100%, key: [{ header: x-user-id }] }
"#;
    let gateway = Gateway::start(config, &up).await;
    let browser = Browser::start().await;
    browser.open(&gateway).await;
    let state = "[data-rollout='fn-2'] [data-part='state']";
    browser.says(state, "ramping").await;
    for path in ["/", "/", "/trap"] {
        gateway.get_with(path, "x-user-id", "user-1").await;
    }
    browser.says("#filters tr[data-key^='function fn']:nth-child(2) [data-name='Failures']", "trap 1").await;
    for quantile in ["p50", "p99"] {
        browser.says(&format!("#filters tr:nth-child(2) [data-name='{quantile}']"), "s").await;
    }

    // The confirmation names both versions, and says that there is no way back.
    let view: Value = gateway.admin(reqwest::Method::GET, "/api/v1/rollouts/fn-2", None).await.text().parse().unwrap();
    browser.click("[data-rollout='fn-2'] [data-action='abandon']").await;
    for version in ["stable", "canary"] {
        browser.says(&format!("#ask-{version}"), view[version].as_str().unwrap()).await;
    }
    browser.says("#ask-text", "cannot be resumed").await;
    browser.find("#ask-why input").await.send_keys("another way").await.unwrap();
    browser.click("#ask-yes").await;
    browser.says(state, "abandoned").await;
    browser.says("[data-rollout='fn-2'] [data-part='verdict']", "another way").await;
    browser.until("document.querySelectorAll('[data-rollout] .actions button').length === 0").await;
    assert_eq!(gateway.get_with("/", "x-user-id", "user-1").await.header("x-version"), "v1");
    browser.close().await;
}

/// The contrast of two colours as WCAG has it, of an element's text with what is behind it.
const CONTRAST: &str = r"
    const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const light = (colour) => {
        paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((value) => channel(value / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return /, 0\)$|transparent/.test(colour) && node.parentElement ? behind(node.parentElement) : colour;
    };
    let worst = [21, ''];
    for (const node of document.querySelectorAll('main *, header *')) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!own || !node.checkVisibility() || node.closest('svg') || node.matches('.unseen, :disabled')) continue;
        const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < worst[0]) worst = [contrast, node.outerHTML.slice(0, 200)];
    }
    return [worst, getComputedStyle(document.body).backgroundColor];
";

#[tokio::test(flavor = "multi_thread")]
async fn it_is_readable_in_both_themes_and_on_a_phone() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    let browser = Browser::start().await;
    browser.open(&gateway).await;
    browser.until("document.querySelector('[data-chart=traffic] svg')").await;
    let mut grounds = Vec::new();
    for theme in ["light", "dark"] {
        browser.click("#theme").await;
        browser.says("#theme", theme).await;
        let seen = browser.run(CONTRAST).await;
        assert!(seen[0][0].as_f64().unwrap() >= 4.5, "{theme}: {seen}");
        grounds.push(seen[1].to_string());
    }
    assert_ne!(grounds[0], grounds[1]);
    // The charts follow: the ink of their labels is the page's, not the one that they were drawn with.
    let ink = "return getComputedStyle(document.querySelector('[data-chart=traffic] text')).fill";
    assert_ne!(browser.run(ink).await, json!("rgb(92, 101, 112)"));

    for (width, height) in [(500, 900), (1280, 900)] {
        browser.resize(width, height).await;
        browser.until("document.documentElement.scrollWidth <= document.documentElement.clientWidth").await;
    }
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_a_token_asks_for_it_and_the_tab_keeps_it() {
    let up = Upstream::start().await;
    let gateway = Builder::new(CONFIG).upstream(&up).guest(Guest::Tag).token("s3cret").start().await;
    let reply = gateway.send(gateway.client().get(gateway.admin_url("/"))).await;
    assert_eq!(reply.status, StatusCode::OK, "the page itself is open");
    let browser = Browser::start().await;
    browser.open(&gateway).await;
    let enter = char::from(Key::Enter).to_string();
    browser.until("document.querySelector('#enter').open").await;
    browser.press(&format!("wrong{enter}")).await;
    browser.says("#enter-problem", "not the gateway’s token").await;
    browser.press(&format!("s3cret{enter}")).await;
    browser.says(STATE, "ramping").await;
    browser.says("#link", "live").await;
    browser.client.refresh().await.unwrap();
    browser.says(STATE, "ramping").await;
    assert_eq!(browser.run("return JSON.stringify(localStorage).includes('s3cret')").await, json!(false));
    // Calls without the token are errors to the browser's console; those were meant.
    let _ = browser.client.clone().close().await;
}

#[tokio::test]
async fn nothing_on_the_page_is_inline_or_from_elsewhere() {
    let up = Upstream::start().await;
    let gateway = Gateway::start(CONFIG, &up).await;
    for (path, media_type) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let reply = gateway.admin(reqwest::Method::GET, path, None).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        assert!(reply.header("content-type").starts_with(media_type), "{path}");
        let policy = reply.header("content-security-policy");
        for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"] {
            assert!(policy.contains(rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        let text = reply.text();
        for elsewhere in ["https://", "src=\"//", "@import", " style=\"", "onclick", "<script>", "innerHTML"] {
            assert!(!text.contains(elsewhere), "{elsewhere} in {path}");
        }
    }
    let foreign = gateway.client().post(gateway.admin_url("/api/v1/rollouts/tag-2/promote"));
    let foreign = gateway.send(foreign.header("sec-fetch-site", "cross-site")).await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    let chart = gateway.admin(reqwest::Method::GET, "/api/v1/rollouts/tag-2/chart?of=latency&width=20", None).await;
    assert_eq!(chart.status, StatusCode::BAD_REQUEST, "{}", chart.text());
}
