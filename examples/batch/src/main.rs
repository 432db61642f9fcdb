//! Counts the primes below its first argument, one line per step of a tenth, and ends with 0; 2 where it is misused.
//!
//! Built for wasm32-wasip1: a core module with `_start`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let limit = match std::env::args().nth(1).as_deref().unwrap_or("100000").parse::<u32>() {
        Ok(limit) => limit,
        Err(error) => {
            eprintln!("the first argument is the number to count to: {error}");
            return ExitCode::from(2);
        }
    };
    let sieve = sieve(limit);
    for tenth in 1..=10 {
        let below = (u64::from(limit) * tenth / 10) as usize;
        let primes = sieve[..below].iter().filter(|&&prime| prime).count();
        println!("{primes} primes below {below}");
    }
    ExitCode::SUCCESS
}

/// For each number below `limit`, whether it is prime.
fn sieve(limit: u32) -> Vec<bool> {
    let limit = limit as usize;
    let mut prime = vec![true; limit];
    prime.iter_mut().take(2).for_each(|it| *it = false);
    let mut n = 2;
    while n * n < limit {
        if prime[n] {
            for multiple in (n * n..limit).step_by(n) {
                prime[multiple] = false;
            }
        }
        n += 1;
    }
    prime
}
