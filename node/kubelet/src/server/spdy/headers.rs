//! SPDY/3.1's blocks of headers: names and values behind lengths, in one zlib stream for the life of a connection and a direction.
//!
//! A block that says more than it may ends the connection, as the streams' state is lost with it. Absent: which headers mean what.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// What both sides' compressors have seen before the first byte: SPDY/3's own list of likely words.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// The most that one block may come to, decompressed.
const MOST: usize = 16 << 10;
/// The most headers of one block.
const MOST_HEADERS: u32 = 64;

/// Names and values, in order; several values of one name stand apart.
pub(crate) type Headers = Vec<(String, String)>;

/// Reads a peer's blocks.
pub(crate) struct Reader(Decompress);

impl Reader {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of the next block.
    ///
    /// # Errors
    /// `InvalidData`: it is none.
    pub(crate) fn read(&mut self, block: &[u8]) -> io::Result<Headers> {
        let plain = self.inflate(block)?;
        parse(&plain).ok_or_else(|| invalid("the headers are no list"))
    }

    fn inflate(&mut self, mut block: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            let (read, written) = (self.0.total_in(), plain.len());
            let done = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let consumed = usize::try_from(self.0.total_in() - read).unwrap_or(usize::MAX);
            block = block.get(consumed..).unwrap_or_default();
            match done {
                Ok(Status::Ok) | Ok(Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(invalid("the headers' stream ended")),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(DICTIONARY)
                        .map_err(|error| invalid(&error.to_string()))?;
                    continue;
                }
                Err(error) => return Err(invalid(&error.to_string())),
            }
            if plain.len() > MOST {
                return Err(invalid("the headers are too long"));
            }
            if plain.len() == plain.capacity() {
                plain.reserve(plain.len().max(1024));
            } else if block.is_empty() {
                return Ok(plain);
            } else if consumed == 0 && plain.len() == written {
                return Err(invalid("the headers cannot be decompressed"));
            }
        }
    }
}

/// Writes our blocks.
pub(crate) struct Writer(Compress);

impl Writer {
    pub(crate) fn new() -> io::Result<Self> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(DICTIONARY).map_err(|error| invalid(&error.to_string()))?;
        Ok(Self(compress))
    }

    /// The next block, with these headers.
    pub(crate) fn write(&mut self, headers: &[(String, String)]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        let length = |it: usize| u32::try_from(it).map_err(|_| invalid("a header is too long"));
        plain.extend(length(headers.len())?.to_be_bytes());
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend(length(text.len())?.to_be_bytes());
                plain.extend(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut rest = &plain[..];
        loop {
            let read = self.0.total_in();
            self.0
                .compress_vec(rest, &mut block, FlushCompress::Sync)
                .map_err(|error| invalid(&error.to_string()))?;
            let consumed = usize::try_from(self.0.total_in() - read).unwrap_or(usize::MAX);
            rest = rest.get(consumed..).unwrap_or_default();
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(64);
        }
    }
}

fn parse(mut plain: &[u8]) -> Option<Headers> {
    let mut headers = Vec::new();
    let count = number(&mut plain)?;
    if count > MOST_HEADERS {
        return None;
    }
    for _ in 0..count {
        let name = text(&mut plain)?;
        let values = text(&mut plain)?;
        headers.extend(values.split('\0').map(|value| (name.clone(), value.to_owned())));
    }
    plain.is_empty().then_some(headers)
}

fn number(plain: &mut &[u8]) -> Option<u32> {
    let (number, rest) = plain.split_first_chunk::<4>()?;
    *plain = rest;
    Some(u32::from_be_bytes(*number))
}

fn text(plain: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(number(plain)?).ok()?;
    let (text, rest) = plain.split_at_checked(length)?;
    *plain = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn blocks_are_read_as_they_were_written_one_after_the_other() {
        let (mut writer, mut reader) = (Writer::new().expect("made"), Reader::new());

        for block in [
            headers(&[("port", "8080"), ("streamtype", "error"), ("requestid", "0")]),
            headers(&[]),
            headers(&[("port", "8080"), ("streamtype", "data"), ("requestid", "0")]),
            headers(&[("x", &"y".repeat(9_000))]),
        ] {
            let written = writer.write(&block).expect("written");
            assert_eq!(reader.read(&written).expect("read"), block);
        }
    }

    #[test]
    fn several_values_of_one_name_stand_apart() {
        let (mut writer, mut reader) = (Writer::new().expect("made"), Reader::new());

        let written = writer.write(&headers(&[("a", "1\u{0}2")])).expect("written");

        assert_eq!(reader.read(&written).expect("read"), headers(&[("a", "1"), ("a", "2")]));
    }

    #[test]
    fn a_block_that_swells_beyond_measure_is_refused() {
        let mut writer = Writer::new().expect("made");

        let bomb = writer.write(&headers(&[("a", &"a".repeat(1 << 20))])).expect("written");

        assert!(bomb.len() < MOST);
        let error = Reader::new().read(&bomb).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for block in [&b"not zlib at all"[..], &[0x78, 0x9c], &[0x78, 0xbb, 1, 2, 3, 4, 5], &[]] {
            assert!(Reader::new().read(block).is_err(), "{block:?}");
        }
        let many = MOST_HEADERS + 1;
        for plain in [
            many.to_be_bytes().to_vec(),
            [1u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat(),
            [0u32.to_be_bytes(), 0u32.to_be_bytes()].concat(),
            vec![0, 0],
        ] {
            assert_eq!(parse(&plain), None, "{plain:?}");
        }
    }
}
