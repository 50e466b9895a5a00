use std::cell::{Cell, RefCell};

thread_local! {
    /// How many requests this instance has begun.
    static REQUESTS_BEGUN: Cell<u64> = const { Cell::new(0) };
}

/// A new request begins in this instance.
pub(crate) fn begin_request() {
    REQUESTS_BEGUN.set(REQUESTS_BEGUN.get() + 1);
}

/// A value of one request, for what a filter must remember from one phase or chunk to the next.
///
/// With `isolation: request` a plain [`Cell`] would do; this one is also right with `isolation: reused`, where the next
/// request finds the instance as this one leaves it: it starts as `T::default()` in every request.
///
/// A request begins with `on_request`, so the filter must have that phase, be it only to continue.
///
/// ```
/// use lockgate_filter::PerRequest;
/// use lockgate_filter::prelude::*;
///
/// #[derive(Default)]
/// struct LongBodies { bytes: PerRequest<usize> }
///
/// #[filter]
/// impl Filter for LongBodies {
///     fn on_request(&self, _: &Request) -> Result<Outcome> {
///         Ok(Outcome::Continue)
///     }
///
///     fn on_request_body(&self, _: &Request, chunk: Vec<u8>, end: bool) -> Result<RequestBodyOutcome> {
///         let bytes = self.bytes.with(|bytes| { *bytes += chunk.len(); *bytes });
///         if end && bytes > 1_000_000 {
///             lockgate_filter::log::info(format!("a body of {bytes} bytes"));
///         }
///         Ok(RequestBodyOutcome::Continue)
///     }
/// }
/// ```
#[derive(Debug, Default)]
pub struct PerRequest<T> {
    value: RefCell<(u64, T)>,
}

impl<T: Default> PerRequest<T> {
    /// Calls `use_value` with this request's value.
    ///
    /// # Panics
    ///
    /// In a filter without `on_request`, and where `use_value` comes back to the same value.
    pub fn with<R>(&self, use_value: impl FnOnce(&mut T) -> R) -> R {
        let request = REQUESTS_BEGUN.get();
        assert!(
            request > 0,
            "a filter with values per request needs the phase `on_request`, in which a request begins"
        );
        let (of_request, value) = &mut *self.value.borrow_mut();
        if *of_request != request {
            (*of_request, *value) = (request, T::default());
        }
        use_value(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lasts_for_one_request() {
        let seen = PerRequest::<Vec<&str>>::default();
        let see = |what| {
            seen.with(|seen| {
                seen.push(what);
                seen.clone()
            })
        };
        begin_request();
        assert_eq!(see("a"), ["a"]);
        assert_eq!(see("b"), ["a", "b"]);
        begin_request();
        assert_eq!(see("c"), ["c"]);
    }

    #[test]
    #[should_panic(expected = "needs the phase `on_request`")]
    fn without_the_phase_in_which_requests_begin_there_is_none() {
        PerRequest::<u8>::default().with(|_| ());
    }
}
