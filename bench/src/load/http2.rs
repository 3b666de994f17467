//! The part of HTTP/2 (RFC 9113) that a reader of event streams needs: it requests some streams on one connection and
//! parses their DATA frames. It opens the windows once, as wide as possible: a run stays below the 2 GiB that this
//! allows.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const WIDEST_WINDOW: u32 = (1 << 31) - 1;
const FIRST_WINDOW: u32 = 65_535;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM_AND_HEADERS: u8 = 1 | 4;

/// The index of the name `accept` in the static table of HPACK: 19, of which the first byte holds 15.
const ACCEPT: &[u8] = &[15, 4];
/// `:status: 200` in the static table, as one byte. A server may send the size of the table before it.
const OK: u8 = 0x88;

/// The first bytes of a client: its settings, and a request for `path` on each of `streams` streams.
pub fn requests(path: &str, streams: u32) -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    let mut settings = vec![0, 4]; // INITIAL_WINDOW_SIZE
    settings.extend_from_slice(&WIDEST_WINDOW.to_be_bytes());
    frame(&mut out, SETTINGS, 0, 0, &settings);
    frame(&mut out, WINDOW_UPDATE, 0, 0, &(WIDEST_WINDOW - FIRST_WINDOW).to_be_bytes());
    // HPACK (RFC 7541): GET and http by their indexes in the static table, the rest as literals.
    let mut block = vec![0x82, 0x86];
    let literals: [(&[u8], &str); 3] = [(&[4], path), (&[1], "localhost"), (ACCEPT, "text/event-stream")];
    for (name, value) in literals {
        block.extend_from_slice(name);
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    for stream in 0..streams {
        frame(&mut out, HEADERS, END_STREAM_AND_HEADERS, stream * 2 + 1, &block);
    }
    out
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// One connection's state.
#[derive(Debug, Default)]
pub struct Http2 {
    /// Bytes of a frame that has not arrived completely.
    partial: Vec<u8>,
    /// The number of response heads that have arrived.
    pub opened: u32,
    /// The server refused or ended a stream, or the connection.
    pub ended: bool,
}

impl Http2 {
    /// Parses frames: calls `data` with the number of the stream (from 0) and its bytes. Returns the bytes to send as an
    /// answer.
    pub fn feed(&mut self, bytes: &[u8], mut data: impl FnMut(u32, &[u8])) -> Vec<u8> {
        let mut answer = Vec::new();
        let joined;
        let mut rest = if self.partial.is_empty() {
            bytes
        } else {
            joined = [&std::mem::take(&mut self.partial), bytes].concat();
            &joined[..]
        };
        while let Some((head, after)) = rest.split_at_checked(FRAME_HEAD) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some((payload, next)) = after.split_at_checked(length) else { break };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match (head[3], head[4]) {
                (DATA, _) => data(stream / 2, payload),
                (HEADERS, _) if payload.iter().take(4).any(|byte| *byte == OK) => self.opened += 1,
                (HEADERS, _) => self.ended = true,
                (SETTINGS, flags) if flags & ACK == 0 => frame(&mut answer, SETTINGS, ACK, 0, &[]),
                (PING, flags) if flags & ACK == 0 => frame(&mut answer, PING, ACK, 0, payload),
                (RST_STREAM | GOAWAY, _) => self.ended = true,
                _ => {}
            }
            rest = next;
        }
        self.partial = rest.to_vec();
        answer
    }
}
