//! The preview1 functions for a guest's numbers: what is upstream's goes there, sockets are answered here.
//!
//! Absent: the functions of sockets that wait ([`super::link`]).

use std::time::Instant;

use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::types::{
    self, Advice, Clockid, Dircookie, Errno, Error, Event, Exitcode, Fd, Fdflags, Fdstat,
    Filedelta, Filesize, Filestat, Fstflags, Lookupflags, Oflags, Prestat, Riflags, Rights,
    Roflags, Sdflags, Siflags, Signal, Size, Subscription, Timestamp, Whence,
};
use wasmtime_wasi::p1::wasi_snapshot_preview1::WasiSnapshotPreview1;
use wasmtime_wasi::p2::bindings::sockets::tcp::ShutdownType;
use wiggle::{GuestMemory, GuestPtr};

use super::socket::Socket;
use super::{Descriptor, Preview1, STDERR, STDIN, STDOUT};

type Result<T> = std::result::Result<T, Error>;

/// The most subscriptions of one poll: what the 4 MiB that a call may have copied hold of them.
const MOST_SUBSCRIPTIONS: u32 = 64 << 10;

impl Preview1 {
    /// Upstream's number for a guest's; a socket is told `for_sockets`.
    fn of_wasi(&self, fd: Fd, for_sockets: Errno) -> Result<Fd> {
        match self.descriptors.get(fd.into()) {
            Some(Descriptor::Wasi(inner)) => Ok((*inner).into()),
            Some(Descriptor::Socket(_)) => Err(for_sockets.into()),
            None => Err(Errno::Badf.into()),
        }
    }

    /// The socket of a number, if it is one's.
    pub(super) fn socket_of(&mut self, fd: Fd) -> Option<&mut Socket> {
        match self.descriptors.get_mut(fd.into()) {
            Some(Descriptor::Socket(socket)) => Some(socket),
            _ => None,
        }
    }

    /// The socket of a number.
    pub(super) fn socket(&mut self, fd: Fd) -> Result<&mut Socket> {
        match self.descriptors.get_mut(fd.into()) {
            Some(Descriptor::Socket(socket)) => Ok(socket),
            Some(Descriptor::Wasi(_)) => Err(Errno::Notsock.into()),
            None => Err(Errno::Badf.into()),
        }
    }

    async fn close(&mut self, memory: &mut GuestMemory<'_>, descriptor: Descriptor) -> Result<()> {
        match descriptor {
            // Upstream gives a number that is free to what is opened next, and these are known by their numbers.
            Descriptor::Wasi(STDIN | STDOUT | STDERR) => Ok(()),
            Descriptor::Wasi(inner) => self.wasi.fd_close(memory, inner.into()).await,
            Descriptor::Socket(_) => Ok(()),
        }
    }
}

/// What a socket may be asked for, in preview1's rights.
fn rights() -> Rights {
    Rights::FD_READ
        | Rights::FD_WRITE
        | Rights::FD_FDSTAT_SET_FLAGS
        | Rights::FD_FILESTAT_GET
        | Rights::POLL_FD_READWRITE
        | Rights::SOCK_SHUTDOWN
        | Rights::SOCK_ACCEPT
}

/// Functions of upstream that take no descriptor.
macro_rules! as_upstream {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $ok:ty;)*) => {$(
        fn $name(&mut self, memory: &mut GuestMemory<'_>, $($arg: $ty),*) -> $ok {
            self.wasi.$name(memory, $($arg),*)
        }
    )*};
}

/// Functions of upstream's descriptors; a socket is told the error that is named.
macro_rules! of_descriptors {
    ($($for_sockets:ident: fn $name:ident($($arg:ident: $ty:ty),*) -> $ok:ty;)*) => {$(
        fn $name(&mut self, memory: &mut GuestMemory<'_>, fd: Fd, $($arg: $ty),*) -> Result<$ok> {
            let fd = self.of_wasi(fd, Errno::$for_sockets)?;
            self.wasi.$name(memory, fd, $($arg),*)
        }
    )*};
}

/// The same of those that may wait.
macro_rules! of_descriptors_async {
    ($($for_sockets:ident: fn $name:ident($($arg:ident: $ty:ty),*) -> $ok:ty;)*) => {$(
        async fn $name(&mut self, memory: &mut GuestMemory<'_>, fd: Fd, $($arg: $ty),*) -> Result<$ok> {
            let fd = self.of_wasi(fd, Errno::$for_sockets)?;
            self.wasi.$name(memory, fd, $($arg),*).await
        }
    )*};
}

impl WasiSnapshotPreview1 for Preview1 {
    fn set_hostcall_fuel(&mut self, fuel: usize) {
        self.wasi.set_hostcall_fuel(fuel);
    }

    as_upstream! {
        fn args_get(argv: GuestPtr<GuestPtr<u8>>, argv_buf: GuestPtr<u8>) -> Result<()>;
        fn args_sizes_get() -> Result<(Size, Size)>;
        fn environ_get(environ: GuestPtr<GuestPtr<u8>>, environ_buf: GuestPtr<u8>) -> Result<()>;
        fn environ_sizes_get() -> Result<(Size, Size)>;
        fn clock_res_get(id: Clockid) -> Result<Timestamp>;
        fn clock_time_get(id: Clockid, precision: Timestamp) -> Result<Timestamp>;
        fn proc_raise(signal: Signal) -> Result<()>;
        fn sched_yield() -> Result<()>;
        fn random_get(buffer: GuestPtr<u8>, length: Size) -> Result<()>;
    }

    of_descriptors! {
        Notsup: fn fd_allocate(offset: Filesize, length: Filesize) -> ();
        Notsup: fn fd_fdstat_set_rights(base: Rights, inheriting: Rights) -> ();
        // Libraries look for directories until they are told this.
        Badf: fn fd_prestat_get() -> Prestat;
        Badf: fn fd_prestat_dir_name(path: GuestPtr<u8>, length: Size) -> ();
        Spipe: fn fd_tell() -> Filesize;
    }

    of_descriptors_async! {
        Spipe: fn fd_advise(offset: Filesize, length: Filesize, advice: Advice) -> ();
        Inval: fn fd_datasync() -> ();
        Inval: fn fd_filestat_set_size(size: Filesize) -> ();
        Inval: fn fd_filestat_set_times(atim: Timestamp, mtim: Timestamp, flags: Fstflags) -> ();
        Spipe: fn fd_pread(iovs: types::IovecArray, offset: Filesize) -> Size;
        Spipe: fn fd_pwrite(iovs: types::CiovecArray, offset: Filesize) -> Size;
        Notdir: fn fd_readdir(buffer: GuestPtr<u8>, length: Size, cookie: Dircookie) -> Size;
        Spipe: fn fd_seek(offset: Filedelta, whence: Whence) -> Filesize;
        Inval: fn fd_sync() -> ();
        Notdir: fn path_create_directory(path: GuestPtr<str>) -> ();
        Notdir: fn path_filestat_get(flags: Lookupflags, path: GuestPtr<str>) -> Filestat;
        Notdir: fn path_filestat_set_times(flags: Lookupflags, path: GuestPtr<str>, atim: Timestamp, mtim: Timestamp, times: Fstflags) -> ();
        Notdir: fn path_readlink(path: GuestPtr<str>, buffer: GuestPtr<u8>, length: Size) -> Size;
        Notdir: fn path_remove_directory(path: GuestPtr<str>) -> ();
        Notdir: fn path_unlink_file(path: GuestPtr<str>) -> ();
    }

    async fn fd_close(&mut self, memory: &mut GuestMemory<'_>, fd: Fd) -> Result<()> {
        let descriptor = self.descriptors.remove(fd.into()).ok_or(Errno::Badf)?;
        self.close(memory, descriptor).await
    }

    async fn fd_renumber(&mut self, memory: &mut GuestMemory<'_>, from: Fd, to: Fd) -> Result<()> {
        let (from, to) = (from.into(), to.into());
        if from == to {
            return self.descriptors.get(from).map(drop).ok_or(Errno::Badf.into());
        }
        let replaced = self.descriptors.renumber(from, to).ok_or(Errno::Badf)?;
        self.close(memory, replaced).await
    }

    async fn fd_fdstat_get(&mut self, memory: &mut GuestMemory<'_>, fd: Fd) -> Result<Fdstat> {
        if let Some(socket) = self.socket_of(fd) {
            let mut fs_flags = Fdflags::empty();
            if socket.nonblocking {
                fs_flags |= Fdflags::NONBLOCK;
            }
            return Ok(Fdstat {
                fs_filetype: socket.filetype(),
                fs_flags,
                fs_rights_base: rights(),
                fs_rights_inheriting: rights(),
            });
        }
        let fd = self.of_wasi(fd, Errno::Badf)?;
        self.wasi.fd_fdstat_get(memory, fd).await
    }

    fn fd_fdstat_set_flags(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        flags: Fdflags,
    ) -> Result<()> {
        if let Some(socket) = self.socket_of(fd) {
            if !(flags & !Fdflags::NONBLOCK).is_empty() {
                return Err(Errno::Inval.into());
            }
            socket.nonblocking = flags.contains(Fdflags::NONBLOCK);
            return Ok(());
        }
        let fd = self.of_wasi(fd, Errno::Badf)?;
        self.wasi.fd_fdstat_set_flags(memory, fd, flags)
    }

    async fn fd_filestat_get(&mut self, memory: &mut GuestMemory<'_>, fd: Fd) -> Result<Filestat> {
        if let Some(socket) = self.socket_of(fd) {
            let filetype = socket.filetype();
            let ino = u64::from(u32::from(fd));
            return Ok(Filestat {
                dev: 0,
                ino,
                filetype,
                nlink: 1,
                size: 0,
                atim: 0,
                mtim: 0,
                ctim: 0,
            });
        }
        let fd = self.of_wasi(fd, Errno::Badf)?;
        self.wasi.fd_filestat_get(memory, fd).await
    }

    async fn fd_read(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        iovs: types::IovecArray,
    ) -> Result<Size> {
        if self.socket_of(fd).is_some() {
            return self.receive(memory, fd, iovs, Riflags::empty()).await;
        }
        let fd = self.of_wasi(fd, Errno::Badf)?;
        self.wasi.fd_read(memory, fd, iovs).await
    }

    async fn fd_write(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        iovs: types::CiovecArray,
    ) -> Result<Size> {
        if self.socket_of(fd).is_some() {
            return self.send(memory, fd, iovs, None).await;
        }
        let fd = self.of_wasi(fd, Errno::Badf)?;
        self.wasi.fd_write(memory, fd, iovs).await
    }

    async fn path_link(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        flags: Lookupflags,
        path: GuestPtr<str>,
        to: Fd,
        to_path: GuestPtr<str>,
    ) -> Result<()> {
        let (fd, to) = (self.of_wasi(fd, Errno::Notdir)?, self.of_wasi(to, Errno::Notdir)?);
        self.wasi.path_link(memory, fd, flags, path, to, to_path).await
    }

    async fn path_rename(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        path: GuestPtr<str>,
        to: Fd,
        to_path: GuestPtr<str>,
    ) -> Result<()> {
        let (fd, to) = (self.of_wasi(fd, Errno::Notdir)?, self.of_wasi(to, Errno::Notdir)?);
        self.wasi.path_rename(memory, fd, path, to, to_path).await
    }

    async fn path_symlink(
        &mut self,
        memory: &mut GuestMemory<'_>,
        path: GuestPtr<str>,
        fd: Fd,
        to_path: GuestPtr<str>,
    ) -> Result<()> {
        let fd = self.of_wasi(fd, Errno::Notdir)?;
        self.wasi.path_symlink(memory, path, fd, to_path).await
    }

    async fn path_open(
        &mut self,
        memory: &mut GuestMemory<'_>,
        fd: Fd,
        dirflags: Lookupflags,
        path: GuestPtr<str>,
        oflags: Oflags,
        base: Rights,
        inheriting: Rights,
        flags: Fdflags,
    ) -> Result<Fd> {
        let fd = self.of_wasi(fd, Errno::Notdir)?;
        // Before anything is made or cut.
        if self.descriptors.is_full() {
            return Err(Errno::Mfile.into());
        }
        let opened = self
            .wasi
            .path_open(memory, fd, dirflags, path, oflags, base, inheriting, flags)
            .await?;
        let number = self.descriptors.push(Descriptor::Wasi(opened.into()));
        Ok(number.map_err(|_| Errno::Mfile)?.into())
    }

    async fn poll_oneoff(
        &mut self,
        memory: &mut GuestMemory<'_>,
        asked: GuestPtr<Subscription>,
        told: GuestPtr<Event>,
        count: Size,
    ) -> Result<Size> {
        match count {
            // There is nothing to wake it.
            0 => return Err(Errno::Inval.into()),
            1..=MOST_SUBSCRIPTIONS => {}
            _ => return Err(Errno::Nomem.into()),
        }
        let begun = Instant::now();
        let mut watched = Vec::with_capacity(count as usize);
        for asked in asked.as_array(count).iter() {
            let asked = memory.read(asked?)?;
            watched.push(self.watch(memory, asked, begun).await?);
        }
        self.wait_for(&mut watched).await;
        let places = told.as_array(count);
        let mut told = 0;
        for (event, place) in watched.iter().filter_map(|it| it.event()).zip(places.iter()) {
            memory.write(place?, event)?;
            told += 1;
        }
        Ok(told)
    }

    /// The code as a shell sees it, where upstream traps for 126 and above.
    fn proc_exit(&mut self, _: &mut GuestMemory<'_>, status: Exitcode) -> wasmtime::Error {
        I32Exit((status & 0xff) as i32).into()
    }

    // The three that may wait are linked in their own way; these are never called.
    fn sock_accept(&mut self, _: &mut GuestMemory<'_>, _: Fd, _: Fdflags) -> Result<Fd> {
        Err(Errno::Nosys.into())
    }

    fn sock_recv(
        &mut self,
        _: &mut GuestMemory<'_>,
        _: Fd,
        _: types::IovecArray,
        _: Riflags,
    ) -> Result<(Size, Roflags)> {
        Err(Errno::Nosys.into())
    }

    fn sock_send(
        &mut self,
        _: &mut GuestMemory<'_>,
        _: Fd,
        _: types::CiovecArray,
        _: Siflags,
    ) -> Result<Size> {
        Err(Errno::Nosys.into())
    }

    fn sock_shutdown(&mut self, _: &mut GuestMemory<'_>, fd: Fd, how: Sdflags) -> Result<()> {
        let how = match (how.contains(Sdflags::RD), how.contains(Sdflags::WR)) {
            (true, true) => ShutdownType::Both,
            (true, false) => ShutdownType::Receive,
            (false, true) => ShutdownType::Send,
            (false, false) => return Err(Errno::Inval.into()),
        };
        self.socket(fd)?.shutdown(how)
    }
}
