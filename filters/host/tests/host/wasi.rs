//! All of WASI 0.2 links, and grants nothing.

use lockgate_guests::Guest;
use lockgate_host::Lane;

use crate::{Recorder, get, header, pass, setup};

/// What `touch-wasi` finds where nothing is granted.
const NOTHING: &str = "env=0,args=0,file=denied,create=denied,dir=denied,clock=ticks,random=varies,stdin=empty,\
    stdout=granted,tcp=denied,listen=denied,udp=denied,lookup=denied";

#[tokio::test]
async fn what_was_not_granted_is_denied() {
    let filter = setup(Guest::TouchWasi).load();
    assert_eq!(filter.lane(), Lane::Inline);
    let sink = Recorder::bound_to(&filter);
    let mut exchange = get("/");
    pass(&filter, &mut exchange).await;
    assert_eq!(header(&exchange.request.headers, "x-wasi"), NOTHING);
    assert_eq!(sink.take(), ["request-1 stable on-request Info: touched"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn printing_is_logging_on_a_worker_thread_too() {
    let filter = setup(Guest::Println).load();
    assert_eq!(filter.snapshotted(), Ok(()), "the SDK prints without a handle");
    let sink = Recorder::bound_to(&filter);
    let task = tokio::spawn(async move { pass(&filter, &mut get("/a")).await });
    task.await.expect("no panic");
    let expected =
        ["request-1 stable on-request Info: stdout: GET /a", "request-1 stable on-request Warn: stderr: GET /a"];
    assert_eq!(sink.take(), expected);
}
