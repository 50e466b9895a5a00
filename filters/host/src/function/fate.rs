//! What becomes of a response's body after its guest's last task. What one part of the host hands to another through the
//! instance (trailers that a guest passes on, say) is no task of the guest's: while the body goes on, some of it may be on
//! its way. A stream that a guest has left open goes on until its instance goes.

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
    over: bool,
    waker: Option<Waker>,
}

impl Fate {
    /// Returns a body that tells when it is over.
    pub(super) fn watch(fate: &Arc<Self>, body: WasiBody) -> WasiBody {
        Watched { body, fate: Arc::clone(fate) }.boxed_unsync()
    }

    /// Returns when the body has come to an end, or nobody wants it any more.
    pub(super) fn poll_over(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.over {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn tell(&self) {
        let mut state = self.0.lock();
        state.over = true;
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
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.fate.tell();
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
        self.fate.tell();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    #[test]
    fn a_body_is_over_at_its_end_or_when_it_is_dropped() {
        let mut context = Context::from_waker(Waker::noop());
        for read in [true, false] {
            let fate = Arc::new(Fate::default());
            let full = Full::new(Bytes::from_static(b"one")).map_err(|never| match never {}).boxed_unsync();
            let mut body = Fate::watch(&fate, full);
            assert!(matches!(Pin::new(&mut body).poll_frame(&mut context), Poll::Ready(Some(Ok(_)))));
            assert!(fate.poll_over(&context).is_pending());
            if read {
                assert!(matches!(Pin::new(&mut body).poll_frame(&mut context), Poll::Ready(None)));
            } else {
                drop(body);
            }
            assert!(fate.poll_over(&context).is_ready());
        }
    }
}
