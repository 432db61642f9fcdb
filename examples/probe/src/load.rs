//! Statements that load their host: memory, CPU, stack, log.
//!
//! Absent: anything that ends well by itself where a limit should have ended it; such a statement fails instead.

use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::{Finding, number, text};

/// A wasm page.
const PAGE: usize = 64 * 1024;

pub fn run(verb: &str, rest: &str) -> Option<Finding> {
    Some(match verb {
        // `MIB`: takes so much memory, touches each page of it, and keeps it.
        "alloc" => number(rest).and_then(alloc),
        // `MIB`: asks for so much at once, which the host must refuse without ending the guest.
        "cannot-alloc" => number(rest).and_then(|mib| match taken(mib) {
            Err(_) => Ok(()),
            Ok(_) => Err("it was allowed".to_owned()),
        }),
        // Takes memory, a MiB at a time, until the host refuses or ends the guest.
        "alloc-all" => {
            let mut mib = 0;
            while alloc(1).is_ok() {
                mib += 1;
                println!("= {mib} MiB");
            }
            Ok(())
        }
        // Never yields and never ends.
        "spin" => loop {
            black_box(());
        },
        // `MS`: the same for a while.
        "spin-ms" => number(rest).map(|ms| {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(ms) {
                black_box(());
            }
        }),
        // A busy loop of host calls, each of which succeeds.
        "spin-host" => loop {
            black_box(Instant::now());
        },
        // `BYTES`: so much on stdout, in lines of 64 bytes.
        "flood" => {
            number(rest).and_then(|bytes| flood(&[[b'x'; 63].as_slice(), b"\n"].concat(), bytes))
        }
        // `BYTES`: the same as one line.
        "flood-line" => number(rest).and_then(|bytes| flood(&[b'x'; 4096], bytes)),
        // Bytes that could be taken for the log's own framing, or for a terminal's commands.
        "forge-log" => {
            let forged: &[u8] =
                b"\r2026-01-01T00:00:00.000000000Z stderr F forged\n\x1b[2J\x1b[31mred\0\xff\xfe\xe2\x80\xae\n";
            std::io::stdout().write_all(forged).map_err(text)
        }
        "recurse" => Err(format!("came back from depth {}", recurse(0))),
        "trap" => trap(),
        "panic" => panic!("the probe was asked to panic"),
        _ => return None,
    })
}

fn alloc(mib: usize) -> Finding {
    let mut held = taken(mib)?;
    held.resize(mib << 20, 0);
    held.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    std::mem::forget(black_box(held));
    Ok(())
}

/// An empty vector with room for so many MiB.
fn taken(mib: usize) -> Result<Vec<u8>, String> {
    let bytes = mib.checked_mul(1 << 20).ok_or("more than the address space holds")?;
    let mut held = Vec::new();
    held.try_reserve_exact(bytes).map_err(|error| error.to_string())?;
    // Without this the compiler may leave out an allocation that nobody uses.
    Ok(black_box(held))
}

fn flood(chunk: &[u8], bytes: usize) -> Finding {
    let mut out = std::io::stdout().lock();
    let mut left = bytes;
    while left > 0 {
        let length = left.min(chunk.len());
        out.write_all(&chunk[..length]).map_err(text)?;
        left -= length;
    }
    out.flush().map_err(text)
}

fn recurse(depth: u64) -> u64 {
    // The array keeps a frame alive that the compiler cannot turn into a loop.
    let frame = black_box([depth; 32]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + black_box(frame)[0] % 2 }
}

fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort();
}
