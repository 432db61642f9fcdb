//! The state of one instance: what its WASI imports see, and what it is charged.
//!
//! Everything that instances of a container share lies in [`Container`] and is referred to, not copied: arguments and
//! environment are copied when the guest asks for them, and directories are opened then. Absent: sockets (`copepod-net`).

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use copepod_net::preview1::Preview1;
use copepod_net::{NetCtx, NetView};
use wasmtime::component::{Resource, ResourceTable};
use wasmtime::{ResourceLimiter, Store, StoreContextMut, UpdateDeadline};
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::cli::{environment, stderr, stdin, stdout};
use wasmtime_wasi::p2::bindings::filesystem::preopens;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::command::Purpose;
use crate::container::Container;
use crate::http::outgoing::{BODY_COST, Outgoing};
use crate::ledger::{Charge, HANDLE_COST, INSTANCE_BASE, OutOfMemory, TABLE_ELEMENT};
use crate::log::Stream;

/// The most random bytes in one call: what `getrandom` gives uninterrupted is far less; reliability.md W22.
const MAX_RANDOM: u64 = 64 << 10;

/// The most bytes that one call's arguments and results may make the host allocate; reliability.md W16.
const HOSTCALL_FUEL: usize = 4 << 20;

/// The most headers of one HTTP message, counted as they lie in memory. hyper's own limit for a head is near 400 KiB.
const MAX_FIELDS: usize = 128 << 10;

/// Core instances, memories and tables of one store: a component of several languages has about ten of each.
const MAX_PARTS: usize = 1_000;

/// Where an instance's standard streams lead.
pub struct Stdio {
    /// Standard input.
    pub stdin: Box<dyn StdinStream + Sync>,
    /// Standard output.
    pub stdout: Box<dyn StdoutStream + Sync>,
    /// Standard error.
    pub stderr: Box<dyn StdoutStream + Sync>,
    /// Whether the guest is told that they are a terminal.
    pub is_terminal: bool,
}

impl Stdio {
    /// Both outputs to the container's log; stdin as its spec says.
    pub fn of_container(container: &Container) -> Self {
        let stdin: Box<dyn StdinStream + Sync> = match &container.stdin {
            Some(stdin) => Box::new(stdin.clone()),
            None => Box::new(tokio::io::empty()),
        };
        Self {
            stdin,
            stdout: Box::new(container.log.writer(Stream::Stdout)),
            stderr: Box::new(container.log.writer(Stream::Stderr)),
            is_terminal: container.spec.tty,
        }
    }
}

/// What the interfaces that ask for a terminal look at; nobody reads from it or writes to it.
#[derive(Clone, Copy, Debug)]
struct Terminal;

impl IsTerminal for Terminal {
    fn is_terminal(&self) -> bool {
        true
    }
}

impl StdinStream for Terminal {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncRead + Send + Sync> {
        Box::new(tokio::io::empty())
    }
}

impl StdoutStream for Terminal {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }
}

/// Books what the instance makes the host hold on its container's ledger; gives it back when the store is dropped.
struct Meter {
    memory: Charge,
    /// What the last growth was charged, to give back where the host then fails to grow.
    last_memory: u64,
    tables: Charge,
    last_table: u64,
    handles: Charge,
    container: Arc<Container>,
}

impl Meter {
    fn new(container: &Arc<Container>) -> Self {
        let none = || Charge::none(container.ledger.clone());
        container.instances.fetch_add(1, Ordering::Relaxed);
        let mut meter = Self {
            memory: none(),
            last_memory: 0,
            tables: none(),
            last_table: 0,
            handles: none(),
            container: container.clone(),
        };
        // Where even this does not fit, the ledger is marked, and the first growth of the instance's memory is refused.
        let _ = meter.handles.add(INSTANCE_BASE);
        meter
    }

    /// What is looked at whenever the guest gives way.
    fn take_stock(&mut self, table: &mut ResourceTable, sockets: usize) -> Result<(), OutOfMemory> {
        self.container.trim_last_words();
        // A body holds what the guest has written into it, also while nobody has been asked to take it.
        let cost = |handle: &mut (dyn Any + Send)| match handle.is::<HostOutgoingBody>() {
            true => HANDLE_COST + BODY_COST,
            false => HANDLE_COST,
        };
        let sockets = HANDLE_COST * sockets as u64;
        self.handles.set(INSTANCE_BASE + sockets + table.iter_mut().map(cost).sum::<u64>())
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.container.instances.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let grown = desired.saturating_sub(current) as u64;
        self.memory.add(grown)?;
        self.last_memory = grown;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory.give_back(std::mem::take(&mut self.last_memory));
        tracing::debug!(%error, "a memory did not grow");
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let grown = (desired.saturating_sub(current) as u64).saturating_mul(TABLE_ELEMENT);
        self.tables.add(grown)?;
        self.last_table = grown;
        Ok(true)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.tables.give_back(std::mem::take(&mut self.last_table));
        tracing::debug!(%error, "a table did not grow");
        Ok(())
    }

    fn instances(&self) -> usize {
        MAX_PARTS
    }

    fn tables(&self) -> usize {
        MAX_PARTS
    }

    fn memories(&self) -> usize {
        MAX_PARTS
    }
}

/// The state of an instance, of either kind.
trait Charged: 'static {
    /// Its books, the resources that are counted in them, and how many sockets lie elsewhere.
    fn books(&mut self) -> (&mut Meter, &mut ResourceTable, usize);
}

/// A store for one instance of `container`, with all that bounds it.
fn bounded<S: Charged>(container: &Container, engine: &wasmtime::Engine, mut state: S) -> Store<S> {
    let limits = &container.spec.limits;
    state.books().1.set_max_capacity(limits.handles as usize);
    let mut store = Store::new(engine, state);
    store.limiter(|state| state.books().0);
    store.set_hostcall_fuel(HOSTCALL_FUEL);
    let slice = crate::cpu::slice(limits.cpu_weight);
    // The first slice may be one on the agents' thread, so it is the shortest.
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |mut context: StoreContextMut<'_, S>| {
        let (meter, table, sockets) = context.data_mut().books();
        meter.take_stock(table, sockets)?;
        Ok(UpdateDeadline::Yield(slice))
    });
    store
}

/// The state of a component's instance.
pub struct GuestState {
    // Declared first, dropped first: what the guest holds goes before the books that it is charged in.
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    net: NetCtx,
    stdio: Stdio,
    purpose: Purpose,
    meter: Meter,
}

impl GuestState {
    /// A store for one component instance of `container`, under the engine of the code that it will run.
    pub(crate) fn store(
        container: &Arc<Container>,
        engine: &wasmtime::Engine,
        stdio: Stdio,
        purpose: Purpose,
    ) -> Store<Self> {
        let mut wasi = WasiCtxBuilder::new();
        wasi.max_random_size(MAX_RANDOM);
        if stdio.is_terminal {
            wasi.stdin(Terminal).stdout(Terminal).stderr(Terminal);
        }
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(MAX_FIELDS);
        let state = Self {
            table: ResourceTable::new(),
            wasi: wasi.build(),
            http,
            outgoing: Outgoing::new(container),
            net: container.net_ctx(),
            stdio,
            purpose,
            meter: Meter::new(container),
        };
        let mut store = bounded(container, engine, state);
        store.set_max_component_handles(container.spec.limits.handles as usize);
        store
    }

    /// The container that this is an instance of.
    pub fn container(&self) -> &Arc<Container> {
        &self.meter.container
    }

    /// The resource table, for what the host hands to the guest.
    pub fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }
}

impl Charged for GuestState {
    fn books(&mut self) -> (&mut Meter, &mut ResourceTable, usize) {
        (&mut self.meter, &mut self.table, 0)
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl NetView for GuestState {
    fn net(&mut self) -> (&mut NetCtx, &mut ResourceTable) {
        (&mut self.net, &mut self.table)
    }
}

impl WasiHttpView for GuestState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}

impl environment::Host for GuestState {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        let own = &self.meter.container.spec.env;
        Ok(own.iter().chain(self.purpose.more_env()).cloned().collect())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.purpose.args().unwrap_or(&self.meter.container.spec.args).clone())
    }

    fn initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        let cwd = &self.meter.container.spec.cwd;
        Ok((!cwd.is_empty()).then(|| cwd.clone()))
    }
}

impl stdin::Host for GuestState {
    fn get_stdin(&mut self) -> wasmtime::Result<Resource<DynInputStream>> {
        Ok(self.table.push(self.stdio.stdin.p2_stream())?)
    }
}

impl stdout::Host for GuestState {
    fn get_stdout(&mut self) -> wasmtime::Result<Resource<DynOutputStream>> {
        Ok(self.table.push(self.stdio.stdout.p2_stream())?)
    }
}

impl stderr::Host for GuestState {
    fn get_stderr(&mut self) -> wasmtime::Result<Resource<DynOutputStream>> {
        Ok(self.table.push(self.stdio.stderr.p2_stream())?)
    }
}

impl preopens::Host for GuestState {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let container = self.meter.container.clone();
        let mut directories = Vec::new();
        for (directory, guest) in container.open_directories()? {
            directories.push((self.table.push(Descriptor::Dir(directory))?, guest));
        }
        Ok(directories)
    }
}

/// The state of a preview1 module's instance.
pub struct Preview1State {
    preview1: Preview1,
    meter: Meter,
}

impl Preview1State {
    /// A store for one module instance of `container`.
    ///
    /// # Errors
    /// A mounted directory cannot be opened.
    pub(crate) fn store(
        container: &Arc<Container>,
        engine: &wasmtime::Engine,
        stdio: Stdio,
        purpose: &Purpose,
    ) -> wasmtime::Result<Store<Self>> {
        let mut builder = WasiCtxBuilder::new();
        builder
            .args(purpose.args().unwrap_or(&container.spec.args))
            .envs(&container.spec.env)
            .envs(purpose.more_env())
            .envs(&purpose.variables(container))
            .max_random_size(MAX_RANDOM)
            .stdout(stdio.stdout)
            .stderr(stdio.stderr);
        let directories = purpose.directories(container);
        for mount in directories {
            mount.prepare()?;
            builder.preopened_dir(&mount.source, &mount.guest, mount.perms)?;
        }
        let preview1 = Preview1::new(
            builder,
            directories.len(),
            stdio.stdin,
            container.net_ctx(),
            container.spec.limits.handles,
        );
        let state = Self { preview1, meter: Meter::new(container) };
        Ok(bounded(container, engine, state))
    }

    /// What its imports work on.
    pub fn preview1(&mut self) -> &mut Preview1 {
        &mut self.preview1
    }
}

impl Charged for Preview1State {
    fn books(&mut self) -> (&mut Meter, &mut ResourceTable, usize) {
        let sockets = self.preview1.sockets();
        (&mut self.meter, self.preview1.wasi().ctx().table, sockets)
    }
}
