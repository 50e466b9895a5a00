//! Clients that ask without end, and a count of what they got.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::tls::Authority;

/// Longer than anything that works takes, on a machine that does something else as well.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests on a connection over TLS before its client makes another one.
const PER_CONNECTION: usize = 20;

/// What became of the requests of one kind.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub answered: usize,
    /// Why the others failed, with how many did.
    pub failures: BTreeMap<String, usize>,
}

impl Tally {
    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    pub fn asked(&self) -> usize {
        self.answered + self.failed()
    }
}

/// Where clients write down what they got.
#[derive(Clone, Debug)]
struct Ledger {
    over: Arc<AtomicBool>,
    tallies: Arc<watch::Sender<BTreeMap<&'static str, Tally>>>,
}

impl Ledger {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn note(&self, kind: &'static str, outcome: Result<(), String>) {
        self.tallies.send_modify(|tallies| {
            let tally = tallies.entry(kind).or_default();
            match outcome {
                Ok(()) => tally.answered += 1,
                Err(why) => *tally.failures.entry(why).or_default() += 1,
            }
        });
    }
}

/// Clients that ask until they are told to stop.
#[derive(Debug)]
pub struct Load {
    ledger: Ledger,
    clients: JoinSet<()>,
}

impl Load {
    pub fn new() -> Self {
        let ledger = Ledger { over: Arc::default(), tallies: Arc::new(watch::Sender::new(BTreeMap::new())) };
        Self { ledger, clients: JoinSet::new() }
    }

    /// Adds clients that speak HTTP/1.1 in the clear, over connections that are kept or over a new one each time.
    pub fn plain(&mut self, kind: &'static str, count: usize, method: Method, url: &str, kept: bool) {
        for _ in 0..count {
            let idle = if kept { 1 } else { 0 };
            let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(idle).build().expect("a client");
            let (ledger, method, url) = (self.ledger.clone(), method.clone(), url.to_owned());
            self.clients.spawn(async move {
                while !ledger.is_over() {
                    ledger.note(kind, ask(client.request(method.clone(), &url)).await);
                }
            });
        }
    }

    /// Adds clients that speak one protocol over TLS: `h2` or `http/1.1`. Each makes some requests on a connection, and
    /// then another connection.
    pub fn tls(
        &mut self,
        kind: &'static str,
        count: usize,
        authority: &Arc<Authority>,
        to: SocketAddr,
        host: &'static str,
    ) {
        for _ in 0..count {
            let (ledger, authority) = (self.ledger.clone(), Arc::clone(authority));
            self.clients.spawn(async move {
                while !ledger.is_over() {
                    let connected = authority.client().alpn(&[kind]).try_connect(to, host).await;
                    let mut connected = match connected {
                        Ok(connected) => connected,
                        Err(error) => {
                            ledger.note(kind, Err(format!("no connection: {error}")));
                            continue;
                        }
                    };
                    for number in 0..PER_CONNECTION {
                        let outcome = match connected.get("/text/a").await {
                            Ok(reply) if reply.status == StatusCode::OK && reply.text() == "a" => Ok(()),
                            Ok(reply) => Err(reply.status.to_string()),
                            // It was told that the connection ends, and has sent nothing: another one will do.
                            Err(error) if number > 0 && (error.is_canceled() || error.is_closed()) => break,
                            Err(error) => Err(format!("{error:?}")),
                        };
                        let failed = outcome.is_err();
                        ledger.note(kind, outcome);
                        if failed || ledger.is_over() {
                            break;
                        }
                    }
                }
            });
        }
    }

    /// What became of the requests of a kind so far.
    pub fn tally(&self, kind: &str) -> Tally {
        self.ledger.tallies.borrow().get(kind).cloned().unwrap_or_default()
    }

    /// Waits until clients of a kind have asked so many times more.
    pub async fn goes_on(&self, kind: &str, more: usize) {
        let asked = |tallies: &BTreeMap<&'static str, Tally>| tallies.get(kind).map_or(0, Tally::asked);
        let mut tallies = self.ledger.tallies.subscribe();
        let until = asked(&tallies.borrow()) + more;
        let reached = tallies.wait_for(|tallies| asked(tallies) >= until);
        let reached = tokio::time::timeout(PATIENCE, reached).await.map(drop);
        reached.unwrap_or_else(|_| panic!("`{kind}` stands still: {:?}", self.tally(kind)));
    }

    /// Lets the last requests end; returns what became of all of them, by kind.
    pub async fn stop(mut self) -> BTreeMap<&'static str, Tally> {
        self.ledger.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client that ends");
        }
        self.ledger.tallies.borrow().clone()
    }

    /// As [`Self::stop`], where no request may have failed.
    pub async fn ends_without_a_failure(self) {
        for (kind, tally) in self.stop().await {
            assert!(tally.failures.is_empty(), "{kind}, beside {} answers: {:?}", tally.answered, tally.failures);
        }
    }
}

async fn ask(request: reqwest::RequestBuilder) -> Result<(), String> {
    let response = request.send().await.map_err(|error| format!("{error:?}"))?;
    if response.status() != StatusCode::OK {
        return Err(response.status().to_string());
    }
    response.bytes().await.map(drop).map_err(|error| format!("{error:?}"))
}
