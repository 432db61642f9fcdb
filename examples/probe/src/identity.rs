//! Statements about arguments, environment, clocks and randomness, and those that only print.
//!
//! Absent: exit codes, which `main` gives.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::{Finding, equal, number, two};

pub fn run(verb: &str, rest: &str) -> Option<Finding> {
    Some(match verb {
        "print" => {
            println!("{rest}");
            Ok(())
        }
        "eprint" => {
            eprintln!("{rest}");
            Ok(())
        }
        // What argv[0] is.
        "name-is" => equal(&std::env::args().next().unwrap_or_default(), rest),
        "args" => {
            println!("= args: {:?}", std::env::args().collect::<Vec<_>>());
            Ok(())
        }
        "env" => {
            let mut all: Vec<_> = std::env::vars().collect();
            all.sort();
            all.iter().for_each(|(name, value)| println!("= {name}={value}"));
            Ok(())
        }
        "env-is" => two(rest).and_then(|(name, wanted)| match std::env::var(name) {
            Ok(found) => equal(&found, wanted),
            Err(error) => Err(error.to_string()),
        }),
        "env-missing" => match std::env::var(rest) {
            Err(_) => Ok(()),
            Ok(found) => Err(format!("found {found:?}")),
        },
        "sleep" => number(rest).map(|ms| std::thread::sleep(Duration::from_millis(ms))),
        "clock" => clock(),
        // The statement prints 16 random bytes, so that two runs can be told apart.
        "random" => {
            println!("= random: {:032x}", random());
            Ok(())
        }
        // `MS`: one numbered line every so often, for ever.
        "tick" => number(rest).map(|ms| {
            for tick in 0u64.. {
                println!("tick {tick}");
                std::thread::sleep(Duration::from_millis(ms));
            }
        }),
        _ => return None,
    })
}

/// Wall time is after this file was written, and the other clock does not go back.
fn clock() -> Finding {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
    println!("= unix time: {} s", since.as_secs());
    let before = Instant::now();
    std::thread::sleep(Duration::from_millis(10));
    let slept = before.elapsed();
    if slept < Duration::from_millis(10) {
        return Err(format!("a sleep of 10 ms took {slept:?}"));
    }
    // 2026-11-22, when this was written.
    if since.as_secs() < 1_795_305_600 {
        Err("wall time lies in the past".to_owned())
    } else {
        Ok(())
    }
}

/// std seeds its hash maps from the host's random source, once per instance.
fn random() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = || u128::from(RandomState::new().hash_one(0u8));
    half() << 64 | half()
}
