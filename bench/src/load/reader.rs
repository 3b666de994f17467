//! Checks the stream of one subscriber: finds the stamp in every message, in any framing, and checks its number and
//! length. It stores no payload, only a stamp that is cut in two, and the number of bytes of a payload that are still to
//! come.

use std::fmt::Write;

/// The first byte of a stamp. No head, id or framing of any server here has it before 24 hexadecimal digits.
const MARK: u8 = b'@';
/// The mark, the message's number, and when it was due, in nanoseconds since the load began.
const STAMP: usize = 1 + 8 + 16;
/// Ends every payload.
const END: u8 = b'$';

/// The smallest payload there can be.
pub const MIN_PAYLOAD: usize = STAMP + 1;

/// Writes the payload of message `number`.
pub fn payload(number: u32, nanos: u64, size: usize) -> String {
    let mut text = String::with_capacity(size);
    let _ = write!(text, "{}{number:08x}{nanos:016x}", MARK as char); // writing to a String cannot fail
    text.extend(std::iter::repeat_n('.', size.saturating_sub(MIN_PAYLOAD)));
    text.push(END as char);
    text
}

/// The payload of message `number` with JSON in it: the names stay, the values change.
pub fn json(number: u32, nanos: u64, size: usize) -> String {
    let mut random = number.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = |below: u32| {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random % below
    };
    let mut text = String::with_capacity(size + 200);
    // Writing to a String cannot fail.
    let _ = write!(text, "{}{number:08x}{nanos:016x}[", MARK as char);
    while text.len() < size {
        let symbol = ["EURUSD", "GBPUSD", "USDJPY", "AUDCAD", "BTCEUR", "XAUUSD"][next(6) as usize];
        let _ = write!(
            text,
            "{{\"symbol\":\"{symbol}\",\"bid\":1.{:05},\"ask\":1.{:05},\"volume\":{},\"venue\":\"XETRA\",\
             \"currency\":\"EUR\",\"status\":\"open\",\"session\":\"continuous\",\"source\":\"matching\"}},",
            next(100_000),
            next(100_000),
            next(100_000)
        );
    }
    text.truncate(size - 1); // all of it is ASCII
    text.push(END as char);
    text
}

/// The result of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A complete message.
    Message { number: u32, nanos: u64 },
    /// The end of a payload is not where it should be.
    Torn,
}

/// The state of one subscriber.
#[derive(Debug, Default)]
pub struct Reader {
    /// The lowest number that may come next, for each topic: numbers ascend, so a lower one is repeated or too late. No
    /// broker promises an order between topics.
    next: Box<[u32]>,
    /// Whether a message counts as delivered only when this reader has it. Late and sleeping readers are only checked.
    pub counted: bool,
    /// The number of messages that it has received.
    pub received: u32,
    /// Bytes of the current payload that are still to come.
    rest: u32,
    /// The message that `rest` belongs to.
    number: u32,
    nanos: u64,
    carried: u8,
    carry: [u8; STAMP],
}

impl Reader {
    /// A reader of `topics` topics, to which messages are published in turn. It expects no number below `first`.
    pub fn new(first: u32, topics: u32, counted: bool) -> Self {
        let next = (0..topics).map(|topic| first + (topic + topics - first % topics) % topics).collect();
        Reader { next, counted, ..Reader::default() }
    }

    /// Message `number` has arrived. Returns how many messages of its topic are missing before it, or `None` if it is
    /// repeated or too late.
    pub fn advance(&mut self, number: u32) -> Option<u32> {
        let topics = self.next.len() as u32;
        let next = &mut self.next[(number % topics) as usize];
        let missing = number.checked_sub(*next)? / topics;
        *next = number + topics;
        self.received += 1;
        Some(missing)
    }

    /// Reads the next bytes. `size` is the length of every payload.
    pub fn feed(&mut self, mut bytes: &[u8], size: usize, mut found: impl FnMut(&mut Self, Found)) {
        loop {
            if self.rest > 0 {
                if bytes.len() < self.rest as usize {
                    self.rest -= bytes.len() as u32;
                    return;
                }
                let (payload, after) = bytes.split_at(self.rest as usize);
                bytes = after;
                self.rest = 0;
                let (number, nanos) = (self.number, self.nanos);
                let whole = payload.last() == Some(&END);
                found(self, if whole { Found::Message { number, nanos } } else { Found::Torn });
            }
            if self.carried > 0 {
                let have = usize::from(self.carried);
                let more = bytes.len().min(STAMP - have);
                self.carry[have..have + more].copy_from_slice(&bytes[..more]);
                if have + more < STAMP {
                    self.carried += more as u8;
                    return;
                }
                bytes = &bytes[more..];
                let carry = self.carry;
                self.carried = 0;
                if !self.stamp(&carry, size)
                    && let Some(at) = memchr::memchr(MARK, &carry[1..])
                {
                    // That byte did not begin a stamp; a later one may.
                    let behind = &carry[1 + at..];
                    self.carry[..behind.len()].copy_from_slice(behind);
                    self.carried = behind.len() as u8;
                }
                continue;
            }
            let Some(at) = memchr::memchr(MARK, bytes) else { return };
            bytes = &bytes[at..];
            if bytes.len() < STAMP {
                self.carry[..bytes.len()].copy_from_slice(bytes);
                self.carried = bytes.len() as u8;
                return;
            }
            bytes = if self.stamp(&bytes[..STAMP], size) { &bytes[STAMP..] } else { &bytes[1..] };
        }
    }

    fn stamp(&mut self, stamp: &[u8], size: usize) -> bool {
        let Some(number) = hex(&stamp[1..9]) else { return false };
        let Some(nanos) = hex(&stamp[9..]) else { return false };
        (self.number, self.nanos, self.rest) = (number as u32, nanos, (size - STAMP) as u32);
        true
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stream: &[u8], size: usize, step: usize) -> Vec<Found> {
        let (mut reader, mut all) = (Reader::default(), Vec::new());
        for piece in stream.chunks(step) {
            reader.feed(piece, size, |_, found| all.push(found));
        }
        all
    }

    #[test]
    fn messages_are_found_wherever_the_bytes_are_cut() {
        let mut stream = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        for number in 0..5 {
            stream.extend_from_slice(format!("f4\r\n@id: @ab-{number}\ndata: ").as_bytes());
            stream.extend_from_slice(payload(number, 7 + u64::from(number), 200).as_bytes());
            stream.extend_from_slice(b"\n\n\r\n");
        }
        let expected: Vec<_> =
            (0..5).map(|number| Found::Message { number, nanos: 7 + u64::from(number) }).collect();
        for step in 1..300 {
            assert_eq!(read(&stream, 200, step), expected, "in steps of {step}");
        }
    }

    #[test]
    fn messages_are_counted_as_missing_or_repeated_within_each_topic() {
        let mut one = Reader::new(5, 1, true);
        assert_eq!(
            [5, 6, 8, 7, 8].map(|number| one.advance(number)),
            [Some(0), Some(0), Some(1), None, None]
        );
        let mut two = Reader::new(5, 2, true); // the next of topic 0 is 6, of topic 1 it is 5
        assert_eq!(two.advance(6), Some(0));
        assert_eq!(two.advance(5), Some(0));
        assert_eq!(two.advance(10), Some(1));
        assert_eq!(two.advance(8), None);
        assert_eq!(two.received, 3);
    }

    #[test]
    fn messages_with_json_payloads_are_found() {
        for size in [200, 1024] {
            let stream = format!("data: {}\n\n", json(7, 9, size));
            assert_eq!(read(stream.as_bytes(), size, 50), [Found::Message { number: 7, nanos: 9 }]);
        }
    }

    #[test]
    fn an_incomplete_payload_is_reported_as_torn() {
        let mut stream = payload(1, 1, 100).into_bytes();
        stream.remove(50);
        stream.extend_from_slice(b"\n\n");
        assert_eq!(read(&stream, 100, 1000), [Found::Torn]);
        assert_eq!(payload(3, 4, MIN_PAYLOAD).len(), MIN_PAYLOAD);
    }
}
