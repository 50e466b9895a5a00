//! Answers a request with a file. What there is to find out about files, [`crate::folder`] does, where it may block; here
//! are the request and the response.

use std::sync::Arc;
use std::time::Instant;

use http::header::{ALLOW, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lockgate_host::Response;
use pingora::proxy::Session;

use crate::control::snapshot::Target;
use crate::folder::{Answer, FileAnswer};
use crate::metrics::FolderOutcome;
use crate::proxy::context::{Context, SentFile};
use crate::proxy::fault::Fault;
use crate::proxy::respond;

/// Answers a request whose target is a folder. Returns whether it has been answered; it has not where the target is
/// another.
///
/// # Errors
/// The client could not be written to, or a file broke off: then the response does.
pub async fn answer(session: &mut Session, context: &mut Context) -> pingora::Result<bool> {
    let (folder, series) = match context.route().map(|route| &route.target) {
        Some(Target::Static { folder, series }) => (Arc::clone(folder), Arc::clone(series)),
        _ => return Ok(false),
    };
    let request = session.req_header();
    if !matches!(request.method, Method::GET | Method::HEAD) {
        series.record(FolderOutcome::Refused, None);
        let allow = HeaderMap::from_iter([(ALLOW, HeaderValue::from_static("GET, HEAD"))]);
        respond::refuse_with(session, context, Fault::MethodNotAllowed, allow).await?;
        return Ok(true);
    }
    // Filters act on what the file is, not on a part or a compressed form of it.
    context.response_body = context.filters_response_body();
    let started = Instant::now();
    let (method, uri) = (&request.method, &request.uri);
    let found = folder.answer(method, uri.path(), uri.query(), &request.headers, context.response_body).await;
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(request_id = %context.id, path = uri.path(), %error, "file could not be read");
            series.record(FolderOutcome::Failed, Some(started.elapsed()));
            respond::refuse(session, context, Fault::FileUnreadable).await?;
            return Ok(true);
        }
    };
    series.record(outcome(&found), Some(started.elapsed()));
    match found {
        Answer::File(file) => send(session, context, *file).await?,
        Answer::Redirect(to) => {
            let headers = HeaderMap::from_iter([(LOCATION, to)]);
            let response = Response { status: StatusCode::MOVED_PERMANENTLY, headers, body: bytes::Bytes::new() };
            respond::answer(session, context, response).await?;
        }
        Answer::Nothing => respond::refuse(session, context, Fault::NoFile).await?,
    }
    Ok(true)
}

async fn send(session: &mut Session, context: &mut Context, file: FileAnswer) -> pingora::Result<()> {
    let FileAnswer { status, headers, body, name, encoding } = file;
    context.file = Some(SentFile { name, encoding });
    let Some(mut body) = body else {
        return respond::answer(session, context, Response { status, headers, body: bytes::Bytes::new() }).await;
    };
    if !respond::begin(session, context, status, headers).await? {
        return Ok(());
    }
    loop {
        match body.next().await {
            Ok(Some(piece)) if body.is_done() => return respond::piece(session, context, piece, true).await,
            Ok(Some(piece)) => respond::piece(session, context, piece, false).await?,
            // An empty file.
            Ok(None) => return respond::piece(session, context, bytes::Bytes::new(), true).await,
            Err(error) => {
                tracing::warn!(request_id = %context.id, %error, "file broke off");
                return Err(context.fail(Fault::FileUnreadable));
            }
        }
    }
}

fn outcome(found: &Answer) -> FolderOutcome {
    match found {
        Answer::Redirect(_) => FolderOutcome::Redirect,
        Answer::Nothing => FolderOutcome::Missing,
        Answer::File(file) => match file.status {
            StatusCode::OK => FolderOutcome::File,
            StatusCode::PARTIAL_CONTENT => FolderOutcome::Part,
            StatusCode::NOT_MODIFIED => FolderOutcome::NotModified,
            _ => FolderOutcome::Refused,
        },
    }
}
