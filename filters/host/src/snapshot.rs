//! Runs `configure` once, and makes the memory that it leaves part of the component.
//!
//! A *snapshot* is a component whose memories and globals begin where those of a configured instance were. Handles are
//! not memory: a guest that holds one after `configure` would later use a handle that its copy does not have. Such a
//! guest is left as it is, and configured anew in each instance.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use wasmtime::component::{Component, Instance, Lift, WasmList};
use wasmtime::{Engine, Result, Store, format_err};
use wasmtime_wizer::{ComponentContext, ComponentInstanceState, Wizer};

use crate::declare::Declarations;
use crate::effects::Effects;
use crate::engine::epochs;
use crate::error::{CallError, CallErrorKind, LoadError};
use crate::filter::Lane;
use crate::link;
use crate::sink::Phase;
use crate::state::{Shared, State};

/// A component after `configure`.
pub(crate) struct Configured {
    /// With the snapshot in it; none where the component is to be compiled as it is.
    pub(crate) component: Option<Vec<u8>>,
    pub(crate) declarations: Declarations,
    /// Why there is no snapshot.
    pub(crate) not_snapshotted: Option<String>,
}

/// A component being configured, on the engine for that purpose.
pub(crate) struct Configuring<'a> {
    bytes: &'a [u8],
    /// What is needed to read the memory out afterwards, and the component with accessors for it; or why not.
    instrumented: Result<(ComponentContext<'a>, Vec<u8>), String>,
}

impl<'a> Configuring<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        // The crate panics on some components that it does not support.
        let instrumented = match catch_unwind(|| Wizer::new().instrument_component(bytes)) {
            Ok(Ok(instrumented)) => Ok(instrumented),
            Ok(Err(error)) => Err(error.root_cause().to_string()),
            Err(_) => Err("the component cannot be taken apart".to_owned()),
        };
        Self { bytes, instrumented }
    }

    /// Returns why no snapshot can be taken, as far as the component's code tells.
    pub(crate) fn why_not(&self) -> Option<&str> {
        self.instrumented.as_ref().err().map(String::as_str)
    }

    /// Compiles the component for `engine`.
    pub(crate) fn compile(&self, engine: &Engine) -> Result<Component> {
        let bytes = self.instrumented.as_ref().map_or(self.bytes, |(_, instrumented)| instrumented);
        Component::from_binary(engine, bytes)
    }

    /// Runs `configure`.
    ///
    /// # Errors
    ///
    /// What `configure` complains about, or how it failed.
    pub(crate) fn configure(&self, component: &Component, shared: Arc<Shared>) -> Result<Run, LoadError> {
        let engine = component.engine();
        let mismatch = |error: &wasmtime::Error| LoadError::Mismatch(format!("{error:#}"));
        let linker = link::linker(engine, component, Lane::Inline, false).map_err(|error| mismatch(&error))?;
        let pre = linker.instantiate_pre(component).map_err(|error| mismatch(&error))?;
        let deadline = shared.limits.configure_deadline;
        let settings = shared.settings.clone();
        let mut store = Store::new(engine, State::new(shared, "", Effects::Real));
        store.limiter(|state| state);
        // What is copied here is not a request's: the settings, and all of the memory afterwards.
        store.set_hostcall_fuel(usize::MAX);
        store.set_epoch_deadline(epochs(deadline));
        store.data_mut().set_deadline(Instant::now(), deadline);
        let failed = |store: &mut Store<State>, error: &wasmtime::Error| {
            store.data_mut().flush_stdio();
            let mut failure = CallError::from_wasmtime(error, store.data().memory.refused);
            if failure.kind == CallErrorKind::Deadline {
                failure.message = format!("it took longer than {deadline:?}");
            }
            failure
        };
        let instance = pre.instantiate(&mut store).map_err(|error| LoadError::Start(failed(&mut store, &error)))?;
        match configure(&mut store, &instance, &settings) {
            Ok(Ok(declarations)) => Ok(Run { store, instance, declarations }),
            Ok(Err(complaint)) => Err(LoadError::Configure(complaint)),
            Err(error) => Err(LoadError::ConfigureFailed(failed(&mut store, &error))),
        }
    }

    /// Takes the snapshot of a configured instance, if one can be taken.
    pub(crate) fn snapshot(self, run: Run) -> Configured {
        let Run { mut store, instance, declarations } = run;
        let taken = self.instrumented.and_then(|(context, _)| {
            if store.data().holds_handles() {
                return Err("it printed or opened something in `configure` and holds on to it".to_owned());
            }
            // Reading memory calls the guest, whose time for `configure` is over by now.
            store.set_epoch_deadline(u64::MAX / 2);
            let mut reader = Reader { store: &mut store, instance, failure: None };
            let taken =
                catch_unwind(AssertUnwindSafe(|| finish(Wizer::new().snapshot_component(&context, &mut reader))));
            match (reader.failure, taken) {
                (Some(error), _) => Err(format!("its memory cannot be read: {}", error.root_cause())),
                (None, Err(_)) => Err("its memory cannot be made part of it".to_owned()),
                (None, Ok(Err(error))) => Err(error.root_cause().to_string()),
                (None, Ok(Ok(component))) => Ok(component),
            }
        });
        match taken {
            Ok(component) => Configured { component: Some(component), declarations, not_snapshotted: None },
            Err(reason) => Configured { component: None, declarations, not_snapshotted: Some(reason) },
        }
    }
}

/// An instance after `configure`.
pub(crate) struct Run {
    store: Store<State>,
    instance: Instance,
    declarations: Declarations,
}

/// The result of `configure` as it crosses the boundary.
pub(crate) type Accepted = (Result<(), String>,);

/// Calls `configure` of an instance. The inner error is its complaint.
fn configure(store: &mut Store<State>, instance: &Instance, settings: &str) -> Result<Result<Declarations, String>> {
    let (_, interface) = instance
        .get_export(&mut *store, None, &link::contract("configuration")[..])
        .ok_or_else(|| format_err!("the component exports no `configuration`"))?;
    let (_, function) = instance
        .get_export(&mut *store, Some(&interface), "configure")
        .ok_or_else(|| format_err!("the component's `configuration` has no `configure`"))?;
    let function = instance.get_typed_func::<(&str,), Accepted>(&mut *store, function)?;
    store.data_mut().phase = Phase::Configure;
    store.data_mut().declarations = Some(Declarations::default());
    let (accepted,) = function.call(&mut *store, (settings,))?;
    store.data_mut().flush_stdio();
    let declarations = store.data_mut().declarations.take().unwrap_or_default();
    Ok(accepted.map(|()| declarations))
}

/// Reads globals and memories of an instance through the accessors that were added to it.
struct Reader<'a> {
    store: &'a mut Store<State>,
    instance: Instance,
    /// The first failure: the trait has no room for one.
    failure: Option<wasmtime::Error>,
}

impl Reader<'_> {
    fn read<R: Lift + 'static, U>(
        &mut self,
        instance: &str,
        function: &str,
        take: impl FnOnce(&Store<State>, R) -> U,
    ) -> Option<U> {
        let read = (|| {
            let missing = || format_err!("the accessor `{function}` is missing");
            let (_, interface) = self.instance.get_export(&mut *self.store, None, instance).ok_or_else(missing)?;
            let (_, index) =
                self.instance.get_export(&mut *self.store, Some(&interface), function).ok_or_else(missing)?;
            let function = self.instance.get_typed_func::<(), (R,)>(&mut *self.store, index)?;
            Ok(function.call(&mut *self.store, ())?.0)
        })();
        match read {
            Ok(value) => Some(take(self.store, value)),
            Err(error) => {
                self.failure.get_or_insert(error);
                None
            }
        }
    }
}

impl ComponentInstanceState for Reader<'_> {
    async fn call_func_ret_list_u8(&mut self, instance: &str, function: &str, contents: impl FnOnce(&[u8]) + Send) {
        self.read(instance, function, |store, list: WasmList<u8>| contents(list.as_le_slice(store)));
    }

    async fn call_func_ret_s32(&mut self, instance: &str, function: &str) -> i32 {
        self.read(instance, function, |_, value| value).unwrap_or_default()
    }

    async fn call_func_ret_s64(&mut self, instance: &str, function: &str) -> i64 {
        self.read(instance, function, |_, value| value).unwrap_or_default()
    }

    async fn call_func_ret_f32(&mut self, instance: &str, function: &str) -> u32 {
        self.read(instance, function, |_, value: f32| value.to_bits()).unwrap_or_default()
    }

    async fn call_func_ret_f64(&mut self, instance: &str, function: &str) -> u64 {
        self.read(instance, function, |_, value: f64| value.to_bits()).unwrap_or_default()
    }
}

/// Runs a future of which nothing ever waits.
pub(crate) fn finish<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => Err(format_err!("taking the snapshot waited for something")),
    }
}
