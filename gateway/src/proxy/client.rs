//! What a client does while a function answers it: it sends a body, waits, speaks out of turn, or goes away. To read is the
//! only way to hear of the last on a connection of HTTP/1.1, so a body is read a little ahead of the guest; of one that is
//! longer than that, and that the guest leaves, the end of the connection is behind what has been sent.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use lockgate_host::Upload;
use pingora::ErrorType;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;

/// Bytes of a body that are read ahead of the guest, and beyond it the rest of one read of the same size at most. More than
/// most forms and calls have.
const AHEAD_BYTES_MAX: usize = 64 << 10;

/// What the client is doing.
#[derive(Debug)]
pub enum Client {
    /// It sends a body.
    Sends {
        /// Where the guest gets it from; none once it wants no more.
        upload: Option<Upload>,
        /// What has been read and not been handed over.
        ahead: Ahead,
    },
    /// It has sent everything: it may go away.
    Watched,
    /// It has said something that is no request's body. What it is will be seen when the response is done.
    Unwatched,
}

/// What happened at the client's side.
#[derive(Debug)]
pub enum Event {
    /// The guest waits for a piece.
    Wanted,
    /// It will not want any more.
    Unwanted,
    /// A piece of the body came, or its end.
    Came(pingora::Result<Option<Bytes>>),
    /// The client is gone.
    Gone,
    /// The client spoke out of turn.
    Spoke,
}

/// The part of a body that has been read and not been handed over.
#[derive(Debug, Default)]
pub struct Ahead {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// Nothing is left to be read.
    read: bool,
    /// The guest waits for what is not there yet.
    awaited: bool,
    /// The client has all that it waits for: once its body is read it may speak again.
    satisfied: bool,
    /// The client is not listened to any more.
    deaf: bool,
    /// The client waits to be told to send, and had this time for it.
    expects: Option<Option<Duration>>,
}

impl Ahead {
    /// Returns a body of which nothing has been read. Where the client waits to be told to send it, it may wait for as
    /// long as the guest does.
    pub fn of(downstream: &mut ServerSession, expects: bool) -> Self {
        let timeout = expects.then(|| downstream.get_read_timeout());
        if expects {
            downstream.set_read_timeout(None);
        }
        Self { expects: timeout, ..Self::default() }
    }

    /// Takes a piece that came, or the end; `read` says that nothing is left. Returns whether the guest waits for it.
    pub fn take(&mut self, piece: Option<Bytes>, read: bool) -> bool {
        self.read = read || piece.is_none();
        if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
        let there = self.read || !self.pieces.is_empty();
        self.awaited && there
    }

    /// Returns the next piece, none at the end, and whether it is the last; nothing if that is not there yet.
    pub fn hand_out(&mut self) -> Option<(Option<Bytes>, bool)> {
        let piece = self.pieces.pop_front();
        self.bytes -= piece.as_ref().map_or(0, Bytes::len);
        let there = piece.is_some() || self.read;
        self.awaited = !there;
        there.then_some((piece, self.read && self.pieces.is_empty()))
    }

    /// Tells a client that waits for it to send its body, unless it has begun.
    ///
    /// # Errors
    /// It could not be written to.
    pub async fn tell_to_send(&mut self, downstream: &mut ServerSession) -> pingora::Result<()> {
        let Some(timeout) = self.expects.take() else { return Ok(()) };
        downstream.set_read_timeout(timeout);
        if self.read || !self.pieces.is_empty() { Ok(()) } else { downstream.write_continue_response().await }
    }

    /// Takes note that the client has all that it waits for. What it sends behind its body is its next request.
    pub fn satisfy(&mut self) {
        self.satisfied = true;
    }

    /// Listens to the client no more.
    pub fn close_ears(&mut self) {
        self.deaf = true;
    }

    /// Waits for what the client does. Reads nothing that would be lost when it is dropped.
    async fn hear(&self, downstream: &mut ServerSession) -> Event {
        if self.deaf || (self.read && self.satisfied) {
            return std::future::pending().await;
        }
        if self.read {
            return watch(downstream).await;
        }
        if self.bytes < AHEAD_BYTES_MAX {
            return Event::Came(downstream.read_request_body().await);
        }
        // HTTP/2 says of a stream that it has ended whatever else is waiting to be read.
        if downstream.is_http2() { watch(downstream).await } else { std::future::pending().await }
    }
}

/// Waits for the next event at the client's side. Reads nothing that would be lost when it is dropped.
pub async fn next(client: &Client, session: &mut Session) -> Event {
    let downstream = session.as_downstream_mut();
    match client {
        Client::Sends { upload: Some(upload), ahead } => tokio::select! {
            biased;
            wanted = upload.wanted(), if !ahead.awaited => if wanted { Event::Wanted } else { Event::Unwanted },
            () = upload.unwanted(), if ahead.awaited => Event::Unwanted,
            event = ahead.hear(downstream) => event,
        },
        Client::Sends { upload: None, ahead } => ahead.hear(downstream).await,
        Client::Watched => watch(downstream).await,
        Client::Unwatched => std::future::pending().await,
    }
}

/// Waits until a client that has sent everything does something all the same.
async fn watch(downstream: &mut ServerSession) -> Event {
    match downstream.read_body_or_idle(true).await {
        Err(error) if matches!(error.etype(), ErrorType::ConnectError) => Event::Spoke,
        Err(_) => Event::Gone,
        Ok(_) => Event::Spoke,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &'static str) -> Option<Bytes> {
        Some(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn what_was_read_is_handed_over_in_order_and_the_last_piece_knows_that_it_is() {
        let mut ahead = Ahead::default();
        assert!(!ahead.take(piece("one"), false), "nobody waits for it");
        assert!(!ahead.take(piece(""), false));
        assert!(!ahead.take(piece("two"), true));
        assert_eq!(ahead.hand_out(), Some((piece("one"), false)));
        assert_eq!(ahead.hand_out(), Some((piece("two"), true)));
        assert_eq!(ahead.bytes, 0);
    }

    #[test]
    fn a_guest_that_waits_is_given_what_comes_and_not_what_is_empty() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.hand_out(), None);
        assert!(!ahead.take(piece(""), false), "an empty piece is no end");
        assert!(ahead.take(piece("one"), false));
        assert_eq!(ahead.hand_out(), Some((piece("one"), false)));
        // The end came without a piece.
        assert_eq!(ahead.hand_out(), None);
        assert!(ahead.take(None, true));
        assert_eq!(ahead.hand_out(), Some((None, true)));
    }
}
