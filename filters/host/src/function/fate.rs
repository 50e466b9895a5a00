//! What becomes of a response's body after its guest's last task, as the instance wants to know that may serve again. A
//! guest may leave a stream open behind it, on which nothing will ever be written: the body has an end only when the
//! instance goes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use wasmtime_wasi_http::{Error, WasiBody};

#[derive(Default)]
pub(super) struct Fate(Mutex<State>);

#[derive(Default)]
struct State {
    /// The guest has no task left.
    idle: bool,
    /// Whether the body came to its end; none while it may.
    over: Option<bool>,
    waker: Option<Waker>,
}

impl Fate {
    /// Returns a body that tells how it ends.
    pub(super) fn watch(fate: &Arc<Self>, body: WasiBody) -> WasiBody {
        Watched { body, fate: Arc::clone(fate) }.boxed_unsync()
    }

    /// Returns whether the body came to its end, as soon as that is known: when it did, or when whoever reads it waits for
    /// what the guest would have to write. Called when the guest has no task left.
    pub(super) fn poll_over(&self, context: &Context<'_>) -> Poll<bool> {
        let mut state = self.0.lock();
        state.idle = true;
        match state.over {
            Some(over) => Poll::Ready(over),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn tell(&self, over: bool) {
        let mut state = self.0.lock();
        if !over && !state.idle {
            return;
        }
        state.over.get_or_insert(over);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

struct Watched {
    body: WasiBody,
    fate: Arc<Fate>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(None | Some(Err(_))) => self.fate.tell(true),
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Pending => self.fate.tell(false),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.fate.tell(true);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;

    use super::*;

    /// A body of which nothing ever comes.
    struct Silent;

    impl Body for Silent {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            Poll::Pending
        }
    }

    fn over(fate: &Fate) -> Poll<bool> {
        fate.poll_over(&Context::from_waker(Waker::noop()))
    }

    fn frame(body: &mut WasiBody) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_body_that_ends_is_over_and_one_that_nobody_writes_any_more_never_is() {
        let fate = Arc::new(Fate::default());
        let mut body = Fate::watch(&fate, Empty::new().map_err(|never| match never {}).boxed_unsync());
        assert!(over(&fate).is_pending());
        assert!(matches!(frame(&mut body), Poll::Ready(None)));
        assert_eq!(over(&fate), Poll::Ready(true));

        let fate = Arc::new(Fate::default());
        let mut body = Fate::watch(&fate, Silent.boxed_unsync());
        // While there are tasks, to wait is nothing bad.
        assert!(frame(&mut body).is_pending());
        assert!(over(&fate).is_pending());
        assert!(frame(&mut body).is_pending());
        assert_eq!(over(&fate), Poll::Ready(false));
    }
}
