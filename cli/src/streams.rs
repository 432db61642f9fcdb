//! This process's own streams as descriptors that an agent can hand on.
//!
//! A terminal is not handed on: whoever has it may change it for all others, and nobody can wait for it but its reader. What is typed and
//! written goes through a pipe instead, and the terminal stays as it is: it edits lines, and Ctrl-C ends this program.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use rustix::pipe::{PipeFlags, pipe_with};

/// stdin, stdout and stderr for a program elsewhere.
pub(crate) struct Streams {
    /// To be dropped once they have been given: while they are here, their readers wait.
    pub(crate) descriptors: [OwnedFd; 3],
    outputs: Vec<JoinHandle<()>>,
}

impl Streams {
    /// With this process's stdin, or none. Of `pipes` alone it can be told elsewhere that this process is gone.
    pub(crate) fn new(stdin: bool, pipes: bool) -> io::Result<Self> {
        let mut outputs = Vec::new();
        let input = match stdin {
            false => File::open("/dev/null")?.into(),
            true if io::stdin().is_terminal() => typed()?,
            true => io::stdin().as_fd().try_clone_to_owned()?,
        };
        let shown = output(io::stdout(), pipes, &mut outputs)?;
        let error = output(io::stderr(), pipes, &mut outputs)?;
        Ok(Self { descriptors: [input, shown, error], outputs })
    }

    /// Gives the descriptors up, and comes back with what waits until all that was written is shown.
    pub(crate) fn given(self) -> impl FnOnce() {
        drop(self.descriptors);
        move || {
            for output in self.outputs {
                let _ = output.join();
            }
        }
    }
}

/// What is typed, until its end or the program's. The thread that reads goes with this process.
fn typed() -> io::Result<OwnedFd> {
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut File::from(writing));
    })?;
    Ok(reading)
}

/// One of this process's outputs.
fn output(
    own: impl Write + AsFd + IsTerminal + Send + 'static,
    pipe: bool,
    outputs: &mut Vec<JoinHandle<()>>,
) -> io::Result<OwnedFd> {
    if pipe || own.is_terminal() { shown(own, outputs) } else { own.as_fd().try_clone_to_owned() }
}

/// Shows at once what is written.
fn shown(
    mut terminal: impl Write + Send + 'static,
    outputs: &mut Vec<JoinHandle<()>>,
) -> io::Result<OwnedFd> {
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
    let show = move || {
        let (mut reading, mut piece) = (File::from(reading), vec![0; 16 << 10]);
        while let Ok(length @ 1..) = reading.read(&mut piece) {
            if terminal.write_all(&piece[..length]).and_then(|()| terminal.flush()).is_err() {
                return;
            }
        }
    };
    outputs.push(std::thread::Builder::new().name("output".into()).spawn(show)?);
    Ok(writing)
}
