//! Clients that ask without a pause while something happens to the server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Result;
use copepod_tests::http::{self, Connection};

/// How many clients ask at a time.
const CLIENTS: usize = 4;

/// What the clients met with.
pub(super) struct Met {
    pub(super) answered: u64,
    pub(super) failed: u64,
}

/// Has clients ask these addresses, each in turn on a kept connection and on a new one, for as long as `act` takes.
pub(super) fn while_asked(
    addresses: &[SocketAddr],
    act: impl FnOnce() -> Result<()>,
) -> Result<Met> {
    let over = AtomicBool::new(false);
    let (answered, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let address = addresses[client % addresses.len()];
            let (over, answered, failed) = (&over, &answered, &failed);
            scope.spawn(move || {
                let mut kept = Connection::open(address).ok();
                while !over.load(Ordering::Relaxed) {
                    let on_kept = kept
                        .as_mut()
                        .is_some_and(|kept| kept.get("/").is_ok_and(|it| it.status == 200));
                    if !on_kept {
                        kept = Connection::open(address).ok();
                    }
                    let on_new = http::get(address, "/").is_ok_and(|it| it.status == 200);
                    for good in [on_kept, on_new] {
                        (if good { answered } else { failed }).fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let acted = act();
        over.store(true, Ordering::Relaxed);
        acted
    })?;
    Ok(Met { answered: answered.into_inner(), failed: failed.into_inner() })
}
