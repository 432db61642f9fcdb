//! Instances of a container's component, and the call of its `incoming-handler`.
//!
//! Absent: when an instance is made and how often it is used, which `respond` and `gate` decide.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use copepod_shim::protocol::ExitReason;
use http::Request;
use tokio::sync::oneshot;
use wasmtime::{PoolConcurrencyLimitError, Store};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;

use crate::code::Code;
use crate::command::Purpose;
use crate::container::Container;
use crate::cpu;
use crate::exit::End;
use crate::guest::{GuestState, Stdio};
use crate::ledger::Ledger;

use super::notes::Notes;
use super::respond::{Fault, Guests, Head, RequestBody};

/// The component of one container.
pub(crate) struct Component {
    container: Arc<Container>,
    slice: u64,
    notes: Mutex<Notes>,
}

/// One instance, with the store that it lives in.
pub(crate) struct Instance {
    store: Store<GuestState>,
    proxy: Proxy,
}

impl Component {
    /// What `container` runs.
    pub(crate) fn new(container: Arc<Container>) -> Self {
        let slice = cpu::slice(container.spec.limits.cpu_weight);
        Self { container, slice, notes: Mutex::new(Notes::new(Instant::now())) }
    }

    /// What an error of the engine says about the instance; none where the guest left by itself with code 0.
    fn fault(&self, error: &wasmtime::Error) -> Option<Fault> {
        if error.is::<PoolConcurrencyLimitError>() {
            return Some(Fault::NoRoom(format!("{error:#}")));
        }
        let end = End::of_error(error, &self.container.ledger);
        match end.reason {
            ExitReason::OutOfMemory => Some(Fault::OutOfMemory(end)),
            ExitReason::Ended if end.code == 0 => None,
            ExitReason::Ended => Some(Fault::Trap(format!("it exited with code {}", end.code))),
            ExitReason::Trapped | ExitReason::Killed | ExitReason::Unknown => {
                Some(Fault::Trap(end.message))
            }
        }
    }
}

impl Guests for Component {
    type Instance = Instance;

    async fn instantiate(&self) -> Result<Instance, Fault> {
        let Code::Http(pre) = &*self.container.code else {
            return Err(Fault::Trap("its code is no HTTP component".to_owned()));
        };
        let stdio = Stdio::of_container(&self.container);
        let mut store = GuestState::store(&self.container, pre.engine(), stdio, Purpose::Main);
        match pre.instantiate_async(&mut store).await {
            Ok(proxy) => Ok(Instance { store, proxy }),
            Err(error) => Err(self.fault(&error).unwrap_or_else(|| {
                Fault::Trap("it exited before it could take a request".to_owned())
            })),
        }
    }

    async fn handle(
        &self,
        Instance { store, proxy }: &mut Instance,
        request: Request<RequestBody>,
        head: oneshot::Sender<Head>,
    ) -> Result<(), Fault> {
        // An instance that waited is behind the clock, and would give way at its first step.
        store.set_epoch_deadline(self.slice);
        let handled = async {
            let mut http = store.data_mut().http();
            let request = http.new_incoming_request(Scheme::Http, request)?;
            let response = http.new_response_outparam(head)?;
            proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, response).await
        };
        match handled.await {
            Ok(()) => Ok(()),
            Err(error) => match self.fault(&error) {
                Some(fault) => Err(fault),
                None => Ok(()),
            },
        }
    }

    fn metered<F: Future + Send>(&self, future: F) -> impl Future<Output = F::Output> + Send {
        self.container.metered(future)
    }

    fn answered(&self) {
        self.container.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn tell(&self, line: &str) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let note = notes.note(Instant::now());
        drop(notes);
        note.write(&self.container.log, line);
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.container.ledger
    }
}
