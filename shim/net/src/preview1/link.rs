//! The preview1 functions as a module imports them.
//!
//! Absent: what they do; those of sockets that a guest opens by itself ([`super::wasmedge`]).

use wasmtime::{Caller, Extern, Linker};
use wasmtime_wasi::p1::types::{Ciovec, Errno, Error, Fd, Fdflags, Iovec, Riflags};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wiggle::{GuestMemory, GuestPtr};

use super::{Preview1, wasmedge};

pub(super) const MODULE: &str = "wasi_snapshot_preview1";

/// Which form of `sock_accept` a module imports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Preview1's: listener, flags, where the descriptor goes.
    Preview1,
    /// WasmEdge's first: listener, where the descriptor goes.
    WasmEdge,
}

impl Accept {
    /// The form in these imports of a module; preview1's where it has none.
    pub fn of(module: &wasmtime::Module) -> Self {
        let mut imports = module.imports();
        let accept = imports.find(|it| it.module() == MODULE && it.name() == "sock_accept");
        match accept.and_then(|it| it.ty().func().map(|it| it.params().len())) {
            Some(2) => Self::WasmEdge,
            _ => Self::Preview1,
        }
    }
}

/// Adds all of preview1, and WasmEdge's functions for sockets that a guest opens.
///
/// # Errors
/// The linker has one of them already.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    accept: Accept,
    state: fn(&mut T) -> &mut Preview1,
) -> wasmtime::Result<()> {
    preview1::add_to_linker(linker, state)?;
    linker.allow_shadowing(true);
    linker.func_wrap_async(
        MODULE,
        "sock_recv",
        move |mut caller: Caller<'_, T>,
              (fd, buffers, count, flags, received, told): (i32, i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let (mut memory, guest) = guest(&mut caller, state)?;
                let buffers = GuestPtr::<Iovec>::new(buffers as u32).as_array(count as u32);
                errno(
                    async {
                        let flags = Riflags::try_from(flags as u16)?;
                        let length = guest.receive(&mut memory, fd_of(fd), buffers, flags).await?;
                        memory.write(GuestPtr::new(received as u32), length)?;
                        memory.write(GuestPtr::new(told as u32), 0_u16)?;
                        Ok(())
                    }
                    .await,
                )
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "sock_send",
        move |mut caller: Caller<'_, T>,
              (fd, pieces, count, _, sent): (i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let (mut memory, guest) = guest(&mut caller, state)?;
                let pieces = GuestPtr::<Ciovec>::new(pieces as u32).as_array(count as u32);
                errno(
                    async {
                        let length = guest.send(&mut memory, fd_of(fd), pieces, None).await?;
                        memory.write(GuestPtr::new(sent as u32), length)?;
                        Ok(())
                    }
                    .await,
                )
            })
        },
    )?;
    match accept {
        Accept::Preview1 => linker.func_wrap_async(
            MODULE,
            "sock_accept",
            move |mut caller: Caller<'_, T>, (fd, flags, accepted): (i32, i32, i32)| {
                Box::new(async move {
                    let (mut memory, guest) = guest(&mut caller, state)?;
                    errno(accept_to(guest, &mut memory, fd, flags, accepted).await)
                })
            },
        )?,
        Accept::WasmEdge => linker.func_wrap_async(
            MODULE,
            "sock_accept",
            move |mut caller: Caller<'_, T>, (fd, accepted): (i32, i32)| {
                Box::new(async move {
                    let (mut memory, guest) = guest(&mut caller, state)?;
                    errno(accept_to(guest, &mut memory, fd, 0, accepted).await)
                })
            },
        )?,
    };
    wasmedge::add_to_linker(linker, state)?;
    linker.allow_shadowing(false);
    Ok(())
}

async fn accept_to(
    guest: &mut Preview1,
    memory: &mut GuestMemory<'_>,
    fd: i32,
    flags: i32,
    accepted: i32,
) -> Result<(), Error> {
    let flags = Fdflags::try_from(flags as u16)?;
    let number = guest.accept(fd_of(fd), flags).await?;
    memory.write(GuestPtr::new(accepted as u32), u32::from(number))?;
    Ok(())
}

pub(super) fn fd_of(number: i32) -> Fd {
    (number as u32).into()
}

/// The memory and the state of the guest that calls.
pub(super) fn guest<'a, T: 'static>(
    caller: &'a mut Caller<'_, T>,
    state: fn(&mut T) -> &mut Preview1,
) -> wasmtime::Result<(GuestMemory<'a>, &'a mut Preview1)> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        wasmtime::bail!("the module exports no memory under the name \"memory\"");
    };
    let (bytes, data) = memory.data_and_store_mut(caller);
    Ok((GuestMemory::Unshared(bytes), state(data)))
}

/// What a function returns: an error's number, or the trap that it is.
pub(super) fn errno(result: Result<(), Error>) -> wasmtime::Result<i32> {
    match result {
        Ok(()) => Ok(i32::from(Errno::Success as u16)),
        Err(error) => Ok(i32::from(error.downcast()? as u16)),
    }
}
