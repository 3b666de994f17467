//! A subscriber's compressed body over HTTP/1.1: chunks (RFC 9112) of one gzip member (RFC 1952), inflated as they come.

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush};

/// Bytes of the header of a gzip member without a name.
const HEADER: usize = 10;

/// The state of parsing one body.
pub struct Gunzip {
    inflate: Box<InflateState>,
    /// Bytes of the header that are still to come.
    header: usize,
    chunk: Chunk,
}

enum Chunk {
    /// In the length of a chunk.
    Length(usize),
    /// In a chunk of which this many bytes are still to come, and then a line end.
    Rest(usize),
    /// In the line end after a chunk.
    End(usize),
}

impl Default for Gunzip {
    fn default() -> Self {
        let inflate = InflateState::new_boxed(DataFormat::Raw);
        Gunzip { inflate, header: HEADER, chunk: Chunk::Length(0) }
    }
}

impl Gunzip {
    /// Passes the inflated bytes to `found`, part by part. `false`: they are not a compressed body.
    pub fn feed(&mut self, mut bytes: &[u8], scratch: &mut [u8], mut found: impl FnMut(&[u8])) -> bool {
        while let [first, rest @ ..] = bytes {
            match self.chunk {
                Chunk::Length(length) => {
                    self.chunk = match first {
                        b'\r' => Chunk::Length(length),
                        b'\n' => Chunk::Rest(length),
                        digit => match char::from(*digit).to_digit(16) {
                            Some(digit) => Chunk::Length(16 * length + digit as usize),
                            None => return false,
                        },
                    };
                    bytes = rest;
                }
                Chunk::Rest(left) => {
                    let (now, rest) = bytes.split_at(left.min(bytes.len()));
                    if !self.content(now, scratch, &mut found) {
                        return false;
                    }
                    self.chunk =
                        if now.len() == left { Chunk::End(2) } else { Chunk::Rest(left - now.len()) };
                    bytes = rest;
                }
                Chunk::End(left) => {
                    self.chunk = if left == 1 { Chunk::Length(0) } else { Chunk::End(left - 1) };
                    bytes = rest;
                }
            }
        }
        true
    }

    fn content(&mut self, bytes: &[u8], scratch: &mut [u8], found: &mut impl FnMut(&[u8])) -> bool {
        let (header, mut bytes) = bytes.split_at(self.header.min(bytes.len()));
        self.header -= header.len();
        loop {
            let result = inflate(&mut self.inflate, bytes, scratch, MZFlush::None);
            bytes = &bytes[result.bytes_consumed..];
            found(&scratch[..result.bytes_written]);
            match result.status {
                Ok(_) | Err(miniz_oxide::MZError::Buf) if result.bytes_written < scratch.len() => {
                    return bytes.is_empty();
                }
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
}

impl std::fmt::Debug for Gunzip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gunzip").finish_non_exhaustive()
    }
}
