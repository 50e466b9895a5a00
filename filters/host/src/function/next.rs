//! What is behind a middleware. A middleware imports the interface that it exports; the host supplies it, and hands the
//! request to whoever knows the rest of the chain.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use wasmtime::Result;
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p3::{Request, Response};
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView as _};

use super::state::{State, remove_forbidden};
use crate::link::WASI_03_VERSION;

/// The rest of a chain, for one request.
pub trait Next: Send {
    /// Has the rest of the chain handle a request, which is the middleware's own: what it makes of the one that it was
    /// given. At most once; polled on the task that drives the middleware.
    fn handle(self: Box<Self>, request: http::Request<NextBody>) -> Handling;
}

/// A response in the making.
pub type Handling = Pin<Box<dyn Future<Output = Result<http::Response<NextBody>, NextError>> + Send>>;

/// A body between a middleware and the rest of its chain.
pub type NextBody = UnsyncBoxBody<Bytes, NextError>;

/// A body broke off, or there was no answer: why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NextError(pub String);

impl From<NextError> for Error {
    fn from(NextError(why): NextError) -> Self {
        Self::InternalError(Some(why))
    }
}

/// Defines the import.
pub(super) fn link(linker: &mut Linker<State>) -> Result<()> {
    let mut handler = linker.instance(&format!("wasi:http/handler@{WASI_03_VERSION}"))?;
    handler.func_wrap_concurrent("handle", |accessor, (request,): (Resource<Request>,)| {
        Box::pin(async move { Ok((handle(accessor, request).await?,)) })
    })
}

async fn handle(
    accessor: &Accessor<State>,
    request: Resource<Request>,
) -> Result<Result<Resource<Response>, ErrorCode>> {
    let taken = accessor.with(|mut access| {
        let request = access.data_mut().table.delete(request)?;
        match request.into_http(&mut access, async { Ok(()) }) {
            Ok((request, _)) => Ok(Ok((access.data_mut().next.take(), request))),
            Err(error) => error.downcast().map(Err),
        }
    });
    let (next, request): (_, http::Request<WasiBody>) = match taken? {
        Ok(taken) => taken,
        Err(code) => return Ok(Err(code)),
    };
    let Some(next) = next else {
        let why = "there is nothing behind this, or it has handled the request already";
        return Ok(Err(ErrorCode::InternalError(Some(why.to_owned()))));
    };
    let request = request.map(|body| body.map_err(|error| NextError(format!("{error:?}"))).boxed_unsync());
    let turn = accessor.with(|mut access| Arc::clone(&access.data_mut().turn));
    let waiting = turn.waits();
    let handled = next.handle(request).await;
    turn.waited(&waiting);
    let mut response = match handled {
        Ok(response) => response,
        Err(NextError(why)) => return Ok(Err(ErrorCode::InternalError(Some(why)))),
    };
    remove_forbidden(response.headers_mut());
    accessor.with(|mut access| {
        let state = access.data_mut();
        // How the body was taken, the guest may tell, and nobody asks.
        let (response, _taken) = Response::from_http(state.http().hooks, response);
        Ok(Ok(state.table.push(response)?))
    })
}
