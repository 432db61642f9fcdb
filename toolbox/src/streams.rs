//! Where a program reads from and writes to: the process's own streams, a file, or bytes that another program of the same shell wrote.
//!
//! Clones share one place in the file or the bytes, as duplicated descriptors do.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::rc::Rc;

/// What a program of a pipeline may leave for the next one: it lies in the guest's memory, as both cannot run at a time.
const LONGEST_PIPE: usize = 64 << 20;

/// The three streams of a program.
#[derive(Clone, Debug)]
pub struct Streams {
    /// Descriptor 0.
    pub input: Input,
    /// Descriptor 1.
    pub output: Output,
    /// Descriptor 2.
    pub error: Output,
}

impl Streams {
    /// The process's own.
    pub fn of_process() -> Self {
        Self { input: Input::Process, output: Output::Process, error: Output::ProcessError }
    }
}

/// A stream to read from.
#[derive(Clone, Debug)]
pub enum Input {
    /// The process's stdin.
    Process,
    /// Nothing.
    Null,
    /// A file.
    File(Rc<File>),
    /// What was written before.
    Bytes(Rc<RefCell<Cursor<Vec<u8>>>>),
}

impl Input {
    /// An input of these bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self::Bytes(Rc::new(RefCell::new(Cursor::new(bytes))))
    }

    /// One line with its end, read byte by byte so that what follows is left to others; empty at the end.
    ///
    /// # Errors
    /// The stream's.
    pub fn line(&mut self) -> io::Result<Vec<u8>> {
        if let Self::Process = self {
            // It has a buffer that all its readers share.
            let mut line = Vec::new();
            io::BufRead::read_until(&mut io::stdin().lock(), b'\n', &mut line)?;
            return Ok(line);
        }
        let mut line = Vec::new();
        let mut byte = [0];
        while self.read(&mut byte)? == 1 {
            line.push(byte[0]);
            if byte[0] == b'\n' {
                break;
            }
        }
        Ok(line)
    }

    /// All that is left.
    ///
    /// # Errors
    /// The stream's.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Process => io::stdin().lock().read(buffer),
            Self::Null => Ok(0),
            Self::File(file) => (&**file).read(buffer),
            Self::Bytes(bytes) => bytes.borrow_mut().read(buffer),
        }
    }
}

/// A stream to write to.
#[derive(Clone, Debug)]
pub enum Output {
    /// The process's stdout.
    Process,
    /// The process's stderr.
    ProcessError,
    /// Nowhere.
    Null,
    /// A file.
    File(Rc<File>),
    /// Kept for the next program.
    Bytes(Rc<RefCell<Vec<u8>>>),
}

impl Output {
    /// One that keeps what is written.
    pub fn kept() -> (Self, Rc<RefCell<Vec<u8>>>) {
        let bytes = Rc::new(RefCell::new(Vec::new()));
        (Self::Bytes(bytes.clone()), bytes)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Process => io::stdout().lock().write(bytes),
            Self::ProcessError => io::stderr().lock().write(bytes),
            Self::Null => Ok(bytes.len()),
            Self::File(file) => (&**file).write(bytes),
            Self::Bytes(kept) => {
                let mut kept = kept.borrow_mut();
                if kept.len() + bytes.len() > LONGEST_PIPE {
                    let limit = LONGEST_PIPE >> 20;
                    return Err(io::Error::other(format!(
                        "a pipe holds at most {limit} MiB here: write to a file instead"
                    )));
                }
                kept.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Process => io::stdout().lock().flush(),
            _ => Ok(()),
        }
    }
}
