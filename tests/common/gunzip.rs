//! Reads a gzip body as it arrives (RFC 1952), with another implementation of deflate than the gateway's, and checks the
//! end.

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};

const HEADER: usize = 10;
const TRAILER: usize = 8;

/// See the module.
pub struct Gunzip {
    inflate: Box<InflateState>,
    header: Vec<u8>,
    ended: bool,
    trailer: Vec<u8>,
    crc: u32,
    length: u32,
    scratch: Vec<u8>,
}

impl Default for Gunzip {
    fn default() -> Self {
        let inflate = InflateState::new_boxed(DataFormat::Raw);
        Gunzip {
            inflate,
            header: vec![],
            ended: false,
            trailer: vec![],
            crc: 0,
            length: 0,
            scratch: vec![0; 64 * 1024],
        }
    }
}

impl Gunzip {
    /// Inflates these bytes, which must contain everything that was compressed so far.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let missing = (HEADER - self.header.len()).min(bytes.len());
        self.header.extend_from_slice(&bytes[..missing]);
        bytes = &bytes[missing..];
        assert!(
            [0x1f, 0x8b, 8, 0].starts_with(&self.header[..self.header.len().min(4)]),
            "{:?}",
            self.header
        );
        let mut out = vec![];
        let chunk = &mut self.scratch;
        while !self.ended && self.header.len() == HEADER {
            let result = inflate(&mut self.inflate, bytes, chunk, MZFlush::None);
            bytes = &bytes[result.bytes_consumed..];
            out.extend_from_slice(&chunk[..result.bytes_written]);
            match result.status {
                Ok(MZStatus::StreamEnd) => self.ended = true,
                Ok(_) if bytes.is_empty() && result.bytes_written < chunk.len() => break,
                Ok(_) => {}
                Err(miniz_oxide::MZError::Buf) => break, // nothing to do
                Err(error) => panic!("not deflate: {error:?}"),
            }
        }
        self.crc = crc(self.crc, &out);
        self.length = self.length.wrapping_add(out.len() as u32);
        if self.ended {
            self.trailer.extend_from_slice(bytes);
            assert!(self.trailer.len() <= TRAILER, "something follows the end: {:?}", self.trailer);
        }
        out
    }

    /// Whether it has come to its end; then the checksum and the length are right.
    pub fn is_whole(&self) -> bool {
        if self.trailer.len() < TRAILER {
            return false;
        }
        let expected = [self.crc.to_le_bytes(), self.length.to_le_bytes()].concat();
        assert_eq!(self.trailer, expected, "the checksum and the length");
        true
    }
}

/// CRC-32, one byte after the other.
fn crc(start: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 2048 {
            let (byte, bit) = (index / 8, index % 8);
            let value = if bit == 0 { byte as u32 } else { table[byte] };
            table[byte] = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
            index += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8;
    !bytes.iter().fold(!start, step)
}
