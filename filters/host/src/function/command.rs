//! A *command* is a program that knows nothing of HTTP: it reads the request's body from standard input and its header
//! from the environment, and prints header and body of its answer, as RFC 3875 (CGI/1.1) has it. Any `wasi:cli/command` of
//! 0.2 is one. It answers one request and ends; what it prints to standard error becomes log lines.
//!
//! Where we differ from the RFC, and why: a `location` that names a path is sent to the client, as one that names a
//! host is, since the router is never entered a second time; what authenticates a client is in the environment, which
//! nobody but the program can look into.

mod header;
mod input;
mod output;
mod variables;

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::CommandPre;

use self::input::Input;
use self::output::Output;
use super::body::RequestBody;
use super::call::Answer;
use super::run::Held;
use super::state::State;
use crate::error::CallError;

/// What a program is told of a request that the request itself does not say. Put into the extensions of a request for a
/// function; without it, the whole path is the program's name, and who asks is not known.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The client's address.
    pub client: Option<IpAddr>,
    /// Bytes of the path that name the program; what follows is for the program to understand (`PATH_INFO`).
    pub script_bytes: usize,
}

/// Answers a request by one run of a program.
// `store` stands before `held`, as in `run::handle`.
pub(super) async fn answer(
    pre: CommandPre<State>,
    store: Store<State>,
    held: Held,
    tls: bool,
    request: http::Request<RequestBody>,
    answer: oneshot::Sender<Answer>,
) -> Result<(), CallError> {
    let mut store = store;
    let turn = Arc::clone(&store.data().turn);
    let (parts, body) = request.into_parts();
    let environment = variables::of(&parts, tls, &turn.shared.vars);
    let output = Output::new(Arc::clone(&turn), answer);
    store.data_mut().be_command(Input::new(body), output.clone(), &environment);
    let ran = async {
        let command = pre.instantiate_async(&mut store).await?;
        command.wasi_cli_run().call_run(&mut store).await
    };
    let status = match ran.await {
        Ok(ended) => i32::from(ended.is_err()),
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(status)) => *status,
            None => {
                let state = store.data();
                return Err(state.turn.failure(&error, state.memory.refused));
            }
        },
    };
    turn.end();
    // The slots are free when the store is gone.
    drop(store);
    drop(held);
    if status != 0 {
        return Err(turn.exited(status));
    }
    output.end()
}
