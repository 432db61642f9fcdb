//! The compile child and the code cache: what is compiled once, what is refused, and what a bomb meets.
//!
//! Absent: running the code, which no program with a compiler does.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;
use std::time::Duration;

use copepod_image::{CompileError, Credentials, Image, Images, Progress, PullPolicy, Retry};
use support::*;

fn load(fixture: &Fixture, wasm: &[u8]) -> Image {
    let file = fixture.folder.path().join("app.wasm");
    fs::write(&file, wasm).expect("written");
    fixture.images.load(&file, "app:v1").expect("loaded")
}

/// A valid module of `functions` functions with `length` additions each: work for a compiler, in few bytes.
fn large(functions: usize, length: usize) -> Vec<u8> {
    let leb = |mut n: usize, out: &mut Vec<u8>| {
        while n >= 0x80 {
            out.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    };
    let section = |id: u8, content: Vec<u8>, out: &mut Vec<u8>| {
        out.push(id);
        leb(content.len(), out);
        out.extend(content);
    };
    let mut wasm = b"\0asm\x01\0\0\0".to_vec();
    section(1, vec![2, 0x60, 0, 0, 0x60, 1, 0x7f, 1, 0x7f], &mut wasm);
    let mut types = Vec::new();
    leb(functions + 1, &mut types);
    types.push(0);
    types.extend(std::iter::repeat_n(1, functions));
    section(3, types, &mut wasm);
    section(7, [&[1, 6][..], b"_start", &[0, 0]].concat(), &mut wasm);
    let mut code = Vec::new();
    leb(functions + 1, &mut code);
    code.extend([2, 0, 0x0b]);
    // x = x * x + x, again and again: (local.get 0) (local.get 0) i32.mul (local.get 0) i32.add (local.set 0)
    let step = [0x20, 0, 0x20, 0, 0x6c, 0x20, 0, 0x6a, 0x21, 0];
    let mut body = vec![0];
    body.extend(step.iter().copied().cycle().take(step.len() * length));
    body.extend([0x20, 0, 0x0b]);
    for _ in 0..functions {
        leb(body.len(), &mut code);
        code.extend(&body);
    }
    section(10, code, &mut wasm);
    wasm
}

#[tokio::test]
async fn a_module_is_compiled_once_however_many_ask_and_then_found() {
    let fixture = Fixture::new();
    let image = load(&fixture, &program("compiled"));
    let compiles = Mutex::new(0);
    let count = |step| {
        if matches!(step, Progress::Compiling { .. }) {
            *compiles.lock().expect("held") += 1;
        }
    };

    let compiler = compiler(None);
    let asks = (0..10).map(|_| fixture.images.code(&image, &compiler, &count));
    let codes = futures::future::join_all(asks).await;
    let next = open(fixture.folder.path(), config());
    let again = next.code(&image, &compiler, &count).await.expect("cached");

    let code = codes[0].as_ref().expect("compiled");
    assert!(codes.iter().all(|it| it.as_ref().is_ok_and(|it| it == code)));
    assert_eq!(*code, again);
    assert_eq!(*compiles.lock().expect("held"), 1);
    assert_eq!(code.inspection.exports, ["_start"]);
    let place = format!("code/{}/{}.cwasm", compiler.engine, image.wasm.hex());
    assert!(code.path.ends_with(place));
    let found = fs::metadata(&code.path).expect("there");
    assert_eq!((found.permissions().mode() & 0o777, found.len()), (0o644, code.bytes));
    assert!(fs::read(&code.path).expect("read").starts_with(b"\x7fELF"));
}

#[tokio::test]
async fn the_engines_hash_is_the_same_each_time_and_another_with_a_salt() {
    let hash = copepod_image::engine_hash(None).expect("an engine");

    assert!(copepod_image::is_engine_hash(&hash), "{hash}");
    assert_eq!(compiler(None).engine, hash);
    assert_ne!(compiler(Some("next")).engine, hash);
    assert_eq!(compiler(Some("next")), compiler(Some("next")));
}

#[tokio::test]
async fn two_engines_have_code_of_one_module_each_by_its_own_compiler() {
    let fixture = Fixture::new();
    let image = load(&fixture, &program("of two engines"));
    let (old, new) = (compiler(None), compiler(Some("next")));

    let by_old = fixture.images.code(&image, &old, &|_| {}).await.expect("compiled");
    let by_new = fixture.images.code(&image, &new, &|_| {}).await.expect("compiled");

    assert_eq!((&by_old.engine, &by_new.engine), (&old.engine, &new.engine));
    let read = |code: &copepod_image::Code| fs::read(&code.path).expect("there");
    assert_ne!(read(&by_old), read(&by_new));
    fixture.images.forget_code(&by_old).expect("forgotten");
    assert!(!by_old.path.exists() && by_new.path.exists());
}

#[tokio::test]
async fn what_cannot_run_is_refused_in_the_words_for_its_kind_and_not_compiled_again() {
    let library = wat::parse_str(r#"(module (func (export "add")))"#).expect("a module");
    let invalid = wat::parse_str(
        r#"(module (func (export "_start") (drop (i32.add (i64.const 1) (i32.const 1)))))"#,
    )
    .expect("a module");
    let threads = wat::parse_str(r#"(module (memory 1 2 shared) (func (export "_start")))"#)
        .expect("a module");
    let truncated = program("truncated")[..20].to_vec();
    for (wasm, what) in [
        (library, "a program with main"),
        (invalid, "type mismatch"),
        (threads, "threads"),
        (truncated, "damaged"),
    ] {
        let registry = Registry::honest(artifact(&wasm)).await;
        let fixture = Fixture::new();
        let image = fixture
            .pull(&registry.name("test/app:v1"))
            .await
            .expect("its bytes begin as wasm's do");
        let compiles = Mutex::new(0);
        let count = |_| *compiles.lock().expect("held") += 1;

        let error =
            fixture.images.code(&image, &compiler(None), &count).await.expect_err("refused");
        let again =
            fixture.images.code(&image, &compiler(None), &count).await.expect_err("refused");

        assert!(error.to_string().contains(what), "{what}: {error}");
        assert_eq!(error.retry(), Retry::WhenChanged);
        assert_eq!(error.to_string(), again.to_string());
        assert_eq!(*compiles.lock().expect("held"), 1);
    }
}

async fn code_with(
    limit: impl FnOnce(&mut copepod_image::CompileLimits),
    wasm: &[u8],
) -> CompileError {
    let mut config = config();
    limit(&mut config.compile);
    let fixture = Fixture::with(config);
    let image = load(&fixture, wasm);
    let error = fixture.images.code(&image, &compiler(None), &|_| {}).await.expect_err("too much");
    assert_eq!(fs::read_dir(fixture.folder.path().join("code/tmp")).expect("a folder").count(), 0);
    // The agent's side is unharmed: the next module compiles.
    let small = load(&fixture, &program("after the bomb"));
    if !matches!(error, CompileError::Limit(ref text) if text.contains("WALL_SECONDS") || text.contains("COMPILE_MEMORY"))
    {
        fixture.images.code(&small, &compiler(None), &|_| {}).await.expect("compiled");
    }
    error
}

#[tokio::test]
async fn w10_a_compile_bomb_ends_at_the_cpu_limit_and_the_message_names_the_setting() {
    let bomb = large(40, 40_000);

    let error = code_with(|limits| limits.cpu_seconds = 1, &bomb).await;

    assert!(
        error
            .to_string()
            .contains("needs more than 1 CPU seconds: raise COPEPOD_COMPILE_CPU_SECONDS (now 1)"),
        "{error}"
    );
    assert_eq!(error.retry(), Retry::WhenChanged);
}

#[tokio::test]
async fn w10_a_compile_bomb_ends_at_the_memory_limit_and_the_message_names_the_setting() {
    let bomb = large(40, 40_000);

    let error = code_with(
        |limits| {
            limits.memory_bytes = 300 << 20;
            limits.threads = 1;
        },
        &bomb,
    )
    .await;

    assert!(error.to_string().contains("raise COPEPOD_COMPILE_MEMORY (now 314572800)"), "{error}");
}

#[tokio::test]
async fn w10_a_compile_bomb_ends_at_the_wall_and_leaves_no_process() {
    let bomb = large(40, 40_000);

    let error = code_with(
        |limits| {
            limits.wall = Duration::from_millis(300);
            limits.cpu_seconds = 501;
        },
        &bomb,
    )
    .await;

    assert!(error.to_string().contains("raise COPEPOD_COMPILE_WALL_SECONDS"), "{error}");
    assert_eq!(children(501), Vec::<u32>::new());
}

#[tokio::test]
#[ignore = "takes minutes of CPU: cargo xtask test --long unit"]
async fn a_module_of_70_mb_compiles_within_the_default_limits() {
    let wasm = large(28_000, 250);
    assert!(wasm.len() > 70_000_000, "{}", wasm.len());
    let fixture = Fixture::new();
    let image = load(&fixture, &wasm);

    let code = fixture.images.code(&image, &compiler(None), &|_| {}).await.expect("compiled");

    assert!(code.bytes > 70_000_000, "{}", code.bytes);
}

/// The compile children of this process with this CPU limit, which tells the tests' children apart.
fn children(cpu_seconds: u64) -> Vec<u32> {
    let me = std::process::id().to_string();
    fs::read_dir("/proc")
        .expect("procfs")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // pid (comm) state ppid
            let rest: Vec<&str> =
                stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            rest.get(1) == Some(&me.as_str())
                && stat.contains("(copepod-compil")
                && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| {
                    it.split(|byte| *byte == 0).any(|it| it == cpu_seconds.to_string().as_bytes())
                })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_compile_child_has_given_up_everything_while_it_works() {
    let mut config = config();
    config.compile.cpu_seconds = 502;
    let fixture = Fixture::with(config);
    let image = load(&fixture, &large(40, 40_000));
    let images = fixture.images.clone();
    let work = tokio::spawn(async move { images.code(&image, &compiler(None), &|_| {}).await });

    // Seccomp comes last: once it is on, all the rest is.
    let (pid, status) = loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let found = children(502).into_iter().find_map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            status.contains("Seccomp:\t2").then_some((pid, status))
        });
        if let Some(found) = found {
            break found;
        }
        assert!(!work.is_finished(), "the child was never seen confined");
    };
    let network = fs::read_link(format!("/proc/{pid}/ns/net"));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("procfs");
    work.abort();
    let _ = work.await;

    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert!(limits.contains("Max cpu time              502                  507 "), "{limits}");
    assert!(limits.contains("Max core file size        0                    0 "), "{limits}");
    if rustix::process::geteuid().is_root() {
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
        assert_ne!(network.expect("procfs"), fs::read_link("/proc/self/ns/net").expect("procfs"));
    }
    // The caller went away, so the child goes too.
    while !children(502).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn flip(path: &std::path::Path) {
    let mut bytes = fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).expect("written");
}

#[tokio::test]
async fn a_flipped_bit_in_the_stored_module_is_noticed_and_the_module_pulled_again() {
    let registry = Registry::honest(artifact(&program("flipped"))).await;
    let fixture = Fixture::new();
    let name = registry.name("test/app:v1");
    let image = fixture.pull(&name).await.expect("pulled");
    flip(&fixture.folder.path().join("images/blobs/sha256").join(image.wasm.hex()));

    let error = fixture.images.code(&image, &compiler(None), &|_| {}).await.expect_err("damaged");
    let never = fixture
        .images
        .resolve(&name, PullPolicy::Never, &Credentials::anonymous(), &|_| {})
        .await
        .expect_err("gone");
    let image = fixture.pull(&name).await.expect("pulled again");

    assert!(error.needs_pull() && error.retry() == Retry::Later, "{error}");
    assert_eq!(never.reason(), "ErrImageNeverPull");
    assert!(fixture.images.code(&image, &compiler(None), &|_| {}).await.is_ok());
}

#[tokio::test]
async fn a_flipped_bit_or_a_cut_in_the_code_cache_is_noticed_by_the_next_agent_and_after_a_failed_start()
 {
    let fixture = Fixture::new();
    let image = load(&fixture, &program("cached"));
    let compiles = Mutex::new(0);
    let count = |_| *compiles.lock().expect("held") += 1;
    let compile =
        async |images: &Images| images.code(&image, &compiler(None), &count).await.expect("code");
    let code = compile(&fixture.images).await;
    let right = fs::read(&code.path).expect("read");

    flip(&code.path);
    compile(&open(fixture.folder.path(), config())).await;
    let after_a_flip = fs::read(&code.path).expect("read");
    fs::write(&code.path, &right[..right.len() / 2]).expect("written");
    compile(&fixture.images).await;
    let after_a_cut = fs::read(&code.path).expect("read");
    flip(&code.path);
    fixture.images.forget_code(&code).expect("forgotten");
    compile(&fixture.images).await;
    let after_a_failed_start = fs::read(&code.path).expect("read");

    assert!(after_a_flip == right && after_a_cut == right && after_a_failed_start == right);
    assert_eq!(*compiles.lock().expect("held"), 4);
}

#[tokio::test]
async fn code_used_longest_ago_goes_when_the_quota_is_full() {
    let mut config = config();
    config.code_quota_bytes = 1;
    let fixture = Fixture::with(config);
    let first = load(&fixture, &program("first"));
    let old = fixture.images.code(&first, &compiler(None), &|_| {}).await.expect("compiled");
    let label = old.path.with_extension("json");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::options()
        .append(true)
        .open(label)
        .expect("opens")
        .set_modified(long_ago)
        .expect("set");

    let second = load(&fixture, &program("second"));
    let new = fixture.images.code(&second, &compiler(None), &|_| {}).await.expect("compiled");

    assert!(!old.path.exists());
    assert!(new.path.exists());
    assert!(
        fixture.images.code(&first, &compiler(None), &|_| {}).await.is_ok(),
        "it is compiled anew"
    );
}

#[tokio::test]
async fn the_code_of_engines_that_nobody_runs_goes_and_that_of_the_others_stays() {
    let fixture = Fixture::new();
    let [dead, living] = ["0", "1"].map(|digit| digit.repeat(32));
    let [of_dead, of_living] =
        [&dead, &living].map(|engine| fixture.images.code_folder(engine).expect("made"));

    let removed = fixture.images.remove_other_engines(&[living].into()).expect("removed");

    assert_eq!(removed, [dead]);
    assert!(!of_dead.exists() && of_living.exists());
    assert!(fixture.folder.path().join("code/tmp").exists());
}

#[tokio::test]
async fn a_file_that_is_in_no_image_is_compiled_once_for_each_content() {
    let fixture = Fixture::new();
    let compiler = compiler(None);
    let path = fixture.folder.path().join("tool.wasm");
    let compiles = Mutex::new(0);
    let count = |step| {
        if matches!(step, Progress::Compiling { .. }) {
            *compiles.lock().expect("held") += 1;
        }
    };
    let code = |content: Vec<u8>| {
        fs::write(&path, content).expect("written");
        let file = fs::File::open(&path).expect("there");
        fixture.images.code_of_file(file, &compiler, &count)
    };

    let one = code(program("one")).await.expect("compiled");
    let again = code(program("one")).await.expect("cached");
    let file = fs::File::open(&path).expect("there");
    let seen = fixture.images.code_of_file(file, &compiler, &count).await.expect("cached");
    let two = code(program("two")).await.expect("compiled");
    let broken = code(b"\0asm\x01\0\0\0 no more".to_vec()).await.expect_err("refused");

    // Whoever hands a file over may have fallen to an attacker: nobody waits for the end of another kind of file.
    let (pipe, _kept) = std::io::pipe().expect("a pipe");
    let pipe = fs::File::from(std::os::fd::OwnedFd::from(pipe));
    let endless = fixture.images.code_of_file(pipe, &compiler, &count).await.expect_err("refused");
    assert!(matches!(endless, CompileError::Invalid(_)), "{endless}");

    assert_eq!((&one, &one), (&again, &seen));
    assert_ne!(one.wasm, two.wasm);
    assert_eq!(*compiles.lock().expect("held"), 3);
    assert_eq!(broken.retry(), Retry::WhenChanged);
    let left = fs::read_dir(fixture.folder.path().join("images/tmp")).expect("a folder").count();
    assert_eq!(left, 0, "copies go once they are compiled");
}
