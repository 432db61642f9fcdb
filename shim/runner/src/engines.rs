//! The two engines of a runner, their linkers, and the code loaded into them.
//!
//! One compiled file serves both, because both take their settings from `copepod_shim::engine`; their modules and stores are
//! never mixed. Absent: a compiler.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use copepod_net::preview1::{self, Accept};
use copepod_shim::engine::{self, Salt};
use copepod_shim::kind::Kind;
use copepod_shim::protocol::{Failure, layout};
use tokio::sync::Semaphore;
use wasmtime::component::{self, HasData};
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, InstancePre, PoolingAllocationConfig};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::{self, CommandPre};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::{ResourceTable, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::code::Code;
use crate::cpu::Ticker;
use crate::guest::{GuestState, Preview1State};
use crate::load;
use crate::program::{self, Place, Program};
use crate::root::Root;

/// Memories that live in the pool at a time: about four per instance of a component, so 250 requests in work per runner, and
/// [`program::SEATS`] short jobs. Beyond that a request gets an error; each slot costs address space only (4 GiB of 128 TiB).
const POOL: u32 = 1_000 + 4 * program::SEATS as u32;

/// The largest table of an instance in the pool, in elements; address space only. A program with a larger one is never in the pool.
const TABLE_ELEMENTS: usize = 128 << 10;

/// Loaded code that is kept while nobody runs it, for what runs again and again: loading and linking take 100 µs to 210 µs, twice
/// what an instance takes, and loaded code holds some 0.4 MiB beside the page cache.
const KEPT: usize = 8;

/// What a slot of the pool keeps resident between two instances: the middle of the measured best range (engine.md 5.3).
const KEEP_RESIDENT: usize = 128 << 10;

/// Stack of a guest's fiber: 512 KiB of it for wasm, the rest for host functions, whose overflow would abort the runner.
const ASYNC_STACK: usize = 2 << 20;

/// Whose code is loaded.
#[derive(Clone, Debug, Default)]
pub struct EngineId {
    /// The compatibility hash of the agent's engine, which names the folder of its code.
    pub hash: String,
    /// What its compiler was given, too.
    pub salt: Option<Salt>,
}

/// The engines of one runner.
pub struct Engines {
    /// Advances both engines' epochs.
    pub ticker: Ticker,
    /// The folder of compiled code.
    code: PathBuf,
    salt: Option<Salt>,
    on_demand: Engine,
    pooled: OnceLock<Result<Pooled, String>>,
    commands: OnceLock<Result<component::Linker<GuestState>, String>>,
    modules: Modules,
    loaded: Mutex<Loaded>,
    seats: Arc<Semaphore>,
}

#[derive(Default)]
struct Loaded {
    codes: HashMap<(String, Kind), Weak<Code>>,
    /// The last that were asked for, newest last: kept while nobody runs them.
    recent: VecDeque<Arc<Code>>,
}

impl Loaded {
    fn get(&mut self, key: &(String, Kind)) -> Option<Arc<Code>> {
        let code = self.codes.get(key)?.upgrade()?;
        if self.recent.back().is_none_or(|newest| !Arc::ptr_eq(newest, &code)) {
            self.recent.retain(|other| !Arc::ptr_eq(other, &code));
            self.keep(code.clone());
        }
        Some(code)
    }

    fn keep(&mut self, code: Arc<Code>) {
        if self.recent.len() == KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(code);
    }
}

struct Pooled {
    engine: Engine,
    linker: component::Linker<GuestState>,
    modules: Modules,
}

/// The linkers for preview1 modules of one engine, one for each form of `sock_accept`.
struct Modules {
    engine: Engine,
    linkers: [OnceLock<Result<wasmtime::Linker<Preview1State>, String>>; 2],
}

impl Modules {
    fn new(engine: &Engine) -> Self {
        Self { engine: engine.clone(), linkers: Default::default() }
    }

    /// The one that a module needs.
    fn get(&self, module: &wasmtime::Module) -> Result<&wasmtime::Linker<Preview1State>, Failure> {
        let accept = Accept::of(module);
        let made = self.linkers[usize::from(accept == Accept::WasmEdge)].get_or_init(|| {
            let mut linker = wasmtime::Linker::new(&self.engine);
            preview1::add_to_linker(&mut linker, accept, Preview1State::preview1)
                .map_err(|error| format!("{error:#}"))?;
            Ok(linker)
        });
        made.as_ref().map_err(unusable)
    }
}

impl Engines {
    /// The engines of a runner with this root, for code that was compiled with the same salt; what is not used is not made.
    ///
    /// # Errors
    /// This machine cannot run the engine at all.
    pub fn new(root: &Root, id: EngineId) -> wasmtime::Result<Arc<Self>> {
        let EngineId { hash, salt } = id;
        let mut config = engine::config(salt.as_ref());
        config.async_stack_size(ASYNC_STACK);
        let on_demand = Engine::new(&config)?;
        let ticker = Ticker::new();
        ticker.add(&on_demand);
        Ok(Arc::new(Self {
            ticker,
            code: root.path(layout::CODE).join(hash),
            salt,
            modules: Modules::new(&on_demand),
            on_demand,
            pooled: OnceLock::new(),
            commands: OnceLock::new(),
            loaded: Mutex::default(),
            seats: Arc::new(Semaphore::new(program::SEATS)),
        }))
    }

    /// The code of `digest`, to be run as `kind`: shared while anybody runs it.
    ///
    /// # Errors
    /// [`Failure::BadCode`] or [`Failure::Refused`], naming what is missing.
    pub fn code(&self, digest: &str, kind: Kind) -> Result<Arc<Code>, Failure> {
        let key = (digest.to_owned(), kind);
        let found = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(&key);
        if let Some(code) = found {
            return Ok(code);
        }
        // Loaded outside the lock; of two at once one is kept.
        let code = Arc::new(self.load(digest, kind)?);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = loaded.get(&key) {
            return Ok(other);
        }
        loaded.codes.retain(|_, code| code.strong_count() > 0);
        loaded.codes.insert(key, Arc::downgrade(&code));
        loaded.keep(code.clone());
        Ok(code)
    }

    fn load(&self, digest: &str, kind: Kind) -> Result<Code, Failure> {
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Failure::BadCode(format!("{digest:?} is not a sha256")));
        }
        let path = self.path(digest);
        let bad = |error: wasmtime::Error| Failure::BadCode(format!("{error:#}"));
        match kind {
            Kind::HttpComponent => {
                let pooled = self.pooled()?;
                let component = load::component(&pooled.engine, &path).map_err(bad)?;
                let pre = pooled.linker.instantiate_pre(&component).map_err(missing)?;
                Ok(Code::Http(ProxyPre::new(pre).map_err(missing)?))
            }
            Kind::CommandComponent => {
                let component = load::component(&self.on_demand, &path).map_err(bad)?;
                let pre = self.commands()?.instantiate_pre(&component).map_err(missing)?;
                let listens = component
                    .component_type()
                    .imports(&self.on_demand)
                    .any(|(name, _)| name.starts_with("wasi:sockets/"));
                let program = Program::new(digest, CommandPre::new(pre).map_err(missing)?);
                Ok(Code::Command { program, listens })
            }
            Kind::Preview1Command => {
                let module = load::module(&self.on_demand, &path).map_err(bad)?;
                let pre = self.modules.get(&module)?.instantiate_pre(&module);
                let program = Program::new(digest, pre.map_err(missing)?);
                let has = |name: &str| module.imports().any(|import| import.name() == name);
                let opens = has("sock_open");
                let accepts = has("sock_accept") && !opens;
                Ok(Code::Preview1 { program, accepts, opens, polls: has("poll_oneoff") })
            }
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.code.join(format!("{digest}.cwasm"))
    }

    /// Where the next instance of a command component is made.
    pub fn command_place<'a>(
        &self,
        program: &'a Program<CommandPre<GuestState>>,
    ) -> Place<'a, CommandPre<GuestState>> {
        program.place(&self.seats, || {
            let pooled = self.pooled().ok()?;
            let component = load::component(&pooled.engine, &self.path(&program.digest)).ok()?;
            CommandPre::new(pooled.linker.instantiate_pre(&component).ok()?).ok()
        })
    }

    /// Where the next instance of a preview1 module is made.
    pub fn module_place<'a>(
        &self,
        program: &'a Program<InstancePre<Preview1State>>,
    ) -> Place<'a, InstancePre<Preview1State>> {
        program.place(&self.seats, || {
            let pooled = self.pooled().ok()?;
            let module = load::module(&pooled.engine, &self.path(&program.digest)).ok()?;
            pooled.modules.get(&module).ok()?.instantiate_pre(&module).ok()
        })
    }

    fn pooled(&self) -> Result<&Pooled, Failure> {
        let made = self.pooled.get_or_init(|| {
            let engine = pooled_engine(self.salt.as_ref()).map_err(|error| format!("{error:#}"))?;
            let linker = component_linker(&engine).map_err(|error| format!("{error:#}"))?;
            self.ticker.add(&engine);
            Ok(Pooled { modules: Modules::new(&engine), engine, linker })
        });
        made.as_ref().map_err(unusable)
    }

    fn commands(&self) -> Result<&component::Linker<GuestState>, Failure> {
        let made = self.commands.get_or_init(|| {
            component_linker(&self.on_demand).map_err(|error| format!("{error:#}"))
        });
        made.as_ref().map_err(unusable)
    }
}

fn unusable(error: &String) -> Failure {
    Failure::Refused {
        reason: "CreateContainerError".into(),
        message: format!("this runner cannot make its engine: {error}"),
    }
}

/// What the linker says of an import that nobody provides, as one sentence for the user.
fn missing(error: wasmtime::Error) -> Failure {
    Failure::Refused {
        reason: "CreateContainerError".into(),
        message: format!(
            "the module needs what this runner does not provide: {error:#}; build it for WASI 0.2 or 0.1 without that import"
        ),
    }
}

fn pooled_engine(salt: Option<&Salt>) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_memories(POOL)
        .total_core_instances(POOL)
        .total_component_instances(POOL)
        .total_tables(POOL)
        .total_stacks(POOL)
        .max_memory_size(4 << 30)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_elements(TABLE_ELEMENTS)
        .table_keep_resident(64 << 10)
        // At once, so that the next instance finds the slot of the last one warm. What waits for a batch is given to nobody: with
        // batches of 32 the first requests of a runner each took a fresh slot and left its memory behind. And it saves no call, as
        // the runner's filter has no `process_madvise`.
        .decommit_batch_size(1)
        .max_unused_warm_slots(100)
        .pagemap_scan(Enabled::Auto);
    let mut config = engine::config(salt);
    config
        .async_stack_size(ASYNC_STACK)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

struct Io;

impl HasData for Io {
    type Data<'a> = &'a mut ResourceTable;
}

struct Own;

impl HasData for Own {
    type Data<'a> = &'a mut GuestState;
}

/// All of WASI 0.2 that guests get: upstream's, but our own arguments, streams, directories and sockets.
fn component_linker(engine: &Engine) -> wasmtime::Result<component::Linker<GuestState>> {
    use bindings::{cli, clocks, filesystem, random};
    use wasmtime_wasi_io::bindings::wasi::io;
    type State = GuestState;

    let mut linker = component::Linker::new(engine);
    let l = &mut linker;
    io::error::add_to_linker::<State, Io>(l, |state| state.ctx().table)?;
    io::poll::add_to_linker::<State, Io>(l, |state| state.ctx().table)?;
    io::streams::add_to_linker::<State, Io>(l, |state| state.ctx().table)?;
    clocks::wall_clock::add_to_linker::<State, WasiClocks>(l, State::clocks)?;
    clocks::monotonic_clock::add_to_linker::<State, WasiClocks>(l, State::clocks)?;
    random::random::add_to_linker::<State, WasiRandom>(l, |state| state.ctx().ctx.random())?;
    random::insecure::add_to_linker::<State, WasiRandom>(l, |state| state.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<State, WasiRandom>(l, |state| state.ctx().ctx.random())?;
    filesystem::types::add_to_linker::<State, WasiFilesystem>(l, State::filesystem)?;
    filesystem::preopens::add_to_linker::<State, Own>(l, |state| state)?;
    cli::exit::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::environment::add_to_linker::<State, Own>(l, |state| state)?;
    cli::stdin::add_to_linker::<State, Own>(l, |state| state)?;
    cli::stdout::add_to_linker::<State, Own>(l, |state| state)?;
    cli::stderr::add_to_linker::<State, Own>(l, |state| state)?;
    cli::terminal_input::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_output::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    copepod_net::add_to_linker(l)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(l)?;
    Ok(linker)
}
