//! gzip bodies (RFC 1952) that are assembled from pieces shared by many readers: one header per connection, then blocks of
//! deflate (RFC 1951), and at a clean end the checksum of everything that was sent. It knows no readers.
//!
//! Every piece ends at a byte boundary. A piece of a [`Deflater`] may refer to the pieces before it, since its last
//! restart: a reader can inflate it only if it received exactly the same bytes since then. A stored piece refers to
//! nothing and can be read by everyone. Several gzip members one after the other would be simpler, but browsers read
//! only the first.

use bytes::Bytes;
use zlib_rs::crc32::{crc32, crc32_combine_gen, crc32_combine_op};
use zlib_rs::{Deflate, DeflateError, DeflateFlush};

use super::frame::{self, Coding, Frame};

/// The content coding of a stream's body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Content {
    /// None: the bytes are sent unchanged.
    #[default]
    Identity,
    /// gzip.
    Gzip,
}

/// Deflate, no name, no time, an unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// A last block without content.
const LAST_BLOCK: [u8; 2] = [3, 0];

/// The most bytes of a stored block.
const STORED: usize = u16::MAX as usize;

/// The bytes of a stored block before its content.
const STORED_HEAD: usize = 5;

/// An empty stored block. Deflate ends each flush with one, and some decoders (Go's) return the inflated bytes only when
/// they reach it, so stored pieces end with one as well.
const FLUSH: [u8; STORED_HEAD] = [0, 0, 0, 0xff, 0xff];

/// The checksum of some bytes of a stream, before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    crc: u32,
    length: u32,
    /// Shifts a checksum by `length` bytes, so that adding this one takes a few dozen steps, whatever its length.
    shift: u32,
}

impl Checksum {
    /// The checksum of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Checksum::new(crc32(0, bytes), bytes.len())
    }

    fn new(crc: u32, length: usize) -> Self {
        // gzip counts modulo 2^32.
        Checksum { crc, length: length as u32, shift: crc32_combine_gen(length as u64) }
    }

    /// The checksum of these bytes followed by the others.
    pub fn and(self, next: Checksum) -> Self {
        let length = self.length.wrapping_add(next.length);
        let crc = crc32_combine_op(self.crc, next.crc, next.shift);
        Checksum { crc, length, shift: crc32_combine_gen(u64::from(length)) }
    }

    /// The number of bytes.
    pub fn length(self) -> usize {
        self.length as usize
    }
}

/// The checksum of everything that a reader has received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    crc: u32,
    length: u32,
}

impl Total {
    /// Adds the bytes that were sent next.
    pub fn add(&mut self, next: Checksum) {
        self.crc = crc32_combine_op(self.crc, next.crc, next.shift);
        self.length = self.length.wrapping_add(next.length);
    }
}

/// A part of a gzip body.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Its bytes.
    pub frame: Frame,
    /// The checksum of the events in it.
    pub checksum: Checksum,
}

/// Stores the parts, `length` bytes in total, without compressing them.
pub fn stored<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone, length: usize) -> Piece {
    let frame = Frame::build(stored_length(length), |out| write_stored(out, parts.clone(), length));
    let crc = parts.fold(0, crc32);
    Piece { frame, checksum: Checksum::new(crc, length) }
}

/// The beginning of a body, with these events.
pub fn opening(events: &[u8]) -> Piece {
    let frame = Frame::build(HEADER.len() + stored_length(events.len()), |out| {
        out.extend_from_slice(&HEADER);
        write_stored(out, std::iter::once(events), events.len());
    });
    Piece { frame, checksum: Checksum::of(events) }
}

/// Whether a body begins as [`opening`] begins it, and not as a compressor in between would.
pub fn begins_as_a_stream(body: &[u8]) -> bool {
    body.strip_prefix(&HEADER).is_some_and(|blocks| blocks.first() == Some(&0))
}

/// The end of a body, with the last events. `total` is the checksum of all events before these; `begun` says whether the
/// body has begun.
pub fn closing(events: &[u8], mut total: Total, begun: bool) -> Frame {
    total.add(Checksum::of(events));
    Frame::build(HEADER.len() + stored_length(events.len()) + LAST_BLOCK.len() + 8, |out| {
        if !begun {
            out.extend_from_slice(&HEADER);
        }
        write_stored(out, std::iter::once(events), events.len());
        out.extend_from_slice(&LAST_BLOCK);
        out.extend_from_slice(&total.crc.to_le_bytes());
        out.extend_from_slice(&total.length.to_le_bytes());
    })
}

/// A heartbeat, and its checksum.
pub fn heartbeat(coding: Coding) -> (Bytes, Checksum) {
    let bytes: &[u8] = match coding {
        Coding::Plain => b"\0\x02\0\xfd\xff:\n\0\0\0\xff\xff",
        Coding::Chunked => b"c\r\n\0\x02\0\xfd\xff:\n\0\0\0\xff\xff\r\n",
    };
    (Bytes::from_static(bytes), Checksum::of(&frame::heartbeat(Coding::Plain)))
}

fn stored_length(length: usize) -> usize {
    length + length.div_ceil(STORED) * STORED_HEAD + FLUSH.len()
}

fn write_stored<'a>(out: &mut Vec<u8>, parts: impl Iterator<Item = &'a [u8]>, mut left: usize) {
    let mut block = 0;
    for mut part in parts {
        while !part.is_empty() {
            if block == 0 {
                block = left.min(STORED);
                let length = block as u16; // at most STORED
                out.push(0);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(&(!length).to_le_bytes());
            }
            let (now, rest) = part.split_at(part.len().min(block));
            out.extend_from_slice(now);
            (block, left, part) = (block - now.len(), left - now.len(), rest);
        }
    }
    out.extend_from_slice(&FLUSH);
}

/// Compresses pieces that may refer to the pieces before them.
pub struct Deflater {
    deflate: Deflate,
    scratch: Box<[u8]>,
    /// The next piece refers to nothing.
    fresh: bool,
}

impl Deflater {
    /// The approximate memory of a compressor, in bytes: the tables of the library, and its output buffer.
    pub const MEMORY: usize = 276 * 1024 + SCRATCH;

    /// A compressor that has compressed nothing.
    pub fn new() -> Self {
        let deflate = Deflate::new(LEVEL, false, WINDOW_BITS);
        Deflater { deflate, scratch: vec![0; SCRATCH].into(), fresh: true }
    }

    /// Forgets all pieces: the next one refers to nothing before it.
    pub fn restart(&mut self) {
        if !std::mem::replace(&mut self.fresh, true) {
            self.deflate.reset();
        }
    }

    /// Compresses these parts as one piece. If that does not make them shorter, they are stored, and later pieces may still
    /// refer to them.
    ///
    /// # Errors
    /// If the library fails, for which there is no reason. The compressor cannot be used after that.
    pub fn piece<'a>(
        &mut self,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<Piece, DeflateError> {
        self.fresh = false;
        let mut out = Vec::new();
        let (mut crc, mut length) = (0, 0);
        for part in parts.clone() {
            (crc, length) = (crc32(crc, part), length + part.len());
            self.write(part, DeflateFlush::NoFlush, &mut out)?;
        }
        self.write(&[], DeflateFlush::SyncFlush, &mut out)?;
        if out.len() > stored_length(length) {
            return Ok(stored(parts, length));
        }
        let frame = Frame::build(out.len(), |frame| frame.extend_from_slice(&out));
        Ok(Piece { frame, checksum: Checksum::new(crc, length) })
    }

    fn write(
        &mut self,
        mut input: &[u8],
        flush: DeflateFlush,
        out: &mut Vec<u8>,
    ) -> Result<(), DeflateError> {
        loop {
            let (read, written) = (self.deflate.total_in(), self.deflate.total_out());
            self.deflate.compress(input, &mut self.scratch, flush)?;
            let read = (self.deflate.total_in() - read) as usize; // at most the input
            let written = (self.deflate.total_out() - written) as usize; // at most the scratch
            out.extend_from_slice(&self.scratch[..written]);
            input = &input[read..];
            if read == 0 && written == 0 && !input.is_empty() {
                return Err(DeflateError::StreamError);
            }
            // If it has filled the buffer, it may have more.
            if input.is_empty() && written < self.scratch.len() {
                return Ok(());
            }
        }
    }
}

impl Default for Deflater {
    fn default() -> Self {
        Deflater::new()
    }
}

impl std::fmt::Debug for Deflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflater").field("fresh", &self.fresh).finish_non_exhaustive()
    }
}

/// zlib's own default. Measured on JSON of 200 B and 1 KiB: the higher levels save 3 % more and take 1.5 times as long.
const LEVEL: i32 = 6;

/// A window of 8 KiB: for short messages it is as good as 32 KiB, and takes a quarter less memory.
const WINDOW_BITS: u8 = 13;

const SCRATCH: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that another implementation inflates from a body.
    fn inflate(body: &[u8]) -> Vec<u8> {
        assert_eq!(body[..HEADER.len()], HEADER);
        let (deflate, end) = body[HEADER.len()..].split_at(body.len() - HEADER.len() - 8);
        let plain = miniz_oxide::inflate::decompress_to_vec(deflate).unwrap();
        assert_eq!(end[..4], crc32(0, &plain).to_le_bytes());
        assert_eq!(end[4..], (plain.len() as u32).to_le_bytes());
        plain
    }

    /// A body that is assembled as a stream does it.
    #[derive(Default)]
    struct Body(Vec<u8>, Total);

    impl Body {
        fn push(&mut self, piece: &Piece) {
            self.0.extend_from_slice(piece.frame.slice(Coding::Plain));
            self.1.add(piece.checksum);
        }
    }

    #[test]
    fn a_body_of_stored_and_compressed_pieces_is_one_gzip_member() {
        let mut deflater = Deflater::new();
        let mut body = Body::default();
        body.push(&opening(b"event: stream-open\n\n"));
        let mut expected = b"event: stream-open\n\n".to_vec();
        for number in 0..200u32 {
            if number % 50 == 0 {
                deflater.restart();
            }
            let event = format!("id: {number}\ndata: {{\"n\":{number},\"text\":\"always the same\"}}\n\n");
            let parts = [event.as_bytes(), event.as_bytes()];
            // The next piece may refer to it, whether it was stored or compressed.
            let compressed = deflater.piece(parts.into_iter()).unwrap();
            let plain = stored(parts.into_iter(), 2 * event.len());
            assert_eq!(compressed.checksum, plain.checksum);
            assert_eq!(compressed.checksum.length(), 2 * event.len());
            body.push(if number % 7 == 3 { &plain } else { &compressed });
            expected.extend_from_slice(&parts.concat());
        }
        let (bytes, checksum) = heartbeat(Coding::Plain);
        body.0.extend_from_slice(&bytes);
        body.1.add(checksum);
        body.0.extend_from_slice(closing(b"event: stream-close\n\n", body.1, true).slice(Coding::Plain));
        expected.extend_from_slice(b":\nevent: stream-close\n\n");
        assert_eq!(inflate(&body.0), expected);
        assert!(body.0.len() < expected.len() / 2, "{} of {}", body.0.len(), expected.len());
    }

    #[test]
    fn a_body_that_only_closes_is_whole() {
        let frame = closing(b"event: stream-close\n\n", Total::default(), false);
        assert_eq!(inflate(frame.slice(Coding::Plain)), b"event: stream-close\n\n");
    }

    #[test]
    fn more_than_a_block_takes_several_wherever_it_is_cut() {
        for (first, second) in [(0, 65_535), (65_535, 1), (65_536, 70_000), (1, 200_000), (131_070, 0)] {
            let bytes: Vec<u8> = (0..first + second).map(|at| (at % 251) as u8).collect();
            let (a, b) = bytes.split_at(first);
            let mut body = Body::default();
            body.push(&opening(b"\n"));
            body.push(&stored([a, b].into_iter(), bytes.len()));
            let noise: Vec<u8> = bytes.iter().map(|byte| byte.wrapping_mul(181) ^ 0x5a).collect();
            body.push(&Deflater::new().piece(noise.chunks(40_000)).unwrap());
            body.0.extend_from_slice(closing(b"\n", body.1, true).slice(Coding::Plain));
            assert_eq!(inflate(&body.0), [b"\n", &bytes[..], &noise[..], b"\n"].concat(), "{first} {second}");
        }
    }

    #[test]
    fn a_piece_of_noise_is_stored() {
        let mut rng = fastrand::Rng::with_seed(7);
        let noise: Vec<u8> = (0..100_000).map(|_| rng.u8(..)).collect();
        let piece = Deflater::new().piece(noise.chunks(10_000)).unwrap();
        assert_eq!(piece.frame.slice(Coding::Plain).len(), noise.len() + 2 * STORED_HEAD + FLUSH.len());
    }

    #[test]
    fn checksums_add_up() {
        let bytes: Vec<u8> = (0..10_000u32).map(|at| ((at * at) >> 3) as u8).collect();
        for cut in [0, 1, 17, 9_999, 10_000] {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(Checksum::of(a).and(Checksum::of(b)), Checksum::of(&bytes));
        }
    }
}
