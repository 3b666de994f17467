//! Tests of the parser and the encoder.

use proptest::prelude::*;

use super::*;

/// All operations in `pieces`, as text, and the error at the end.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Option<Malformed>) {
    let mut reader = Reader::default();
    let mut read = Vec::new();
    for piece in pieces {
        reader.space().extend_from_slice(piece);
        loop {
            match reader.next() {
                Ok(Some(operation)) => read.push(text(operation)),
                Ok(None) => break,
                Err(error) => return (read, Some(error)),
            }
        }
    }
    (read, None)
}

fn text(operation: Operation) -> String {
    match operation {
        Operation::Message(Delivered { sid, subject, headers, payload, .. }) => {
            let headers = headers.map(|headers| headers.escape_ascii().to_string());
            format!("{sid} {} {headers:?} {}", subject.escape_ascii(), payload.escape_ascii())
        }
        Operation::Info(info) => format!("{} {:?}", info.max_payload, info.connect_urls),
        other => format!("{other:?}"),
    }
}

const ALL: &[u8] = b"INFO {\"max_payload\":7,\"connect_urls\":[\"a:1\"],\"more\":{}} \r\n\
    PING\r\nPONG\r\n+OK\r\n-ERR 'Stale Connection'\r\nMSG a.b 1 0\r\n\r\nMSG a.b 2 _R.x 5\r\nMSG\r\n\r\n\
    HMSG \xff 3 12 17\r\nNATS/1.0\r\n\r\nhello\r\nHMSG a 18446744073709551615 r 12 12\r\nNATS/1.0\r\n\r\n\r\n";

fn all() -> Vec<String> {
    [
        "7 [\"a:1\"]",
        "Ping",
        "Pong",
        "Ok",
        "Error(\"Stale Connection\")",
        "1 a.b None ",
        "2 a.b None MSG\\r\\n",
        "3 \\xff Some(\"NATS/1.0\\\\r\\\\n\\\\r\\\\n\") hello",
        "18446744073709551615 a Some(\"NATS/1.0\\\\r\\\\n\\\\r\\\\n\") ",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[test]
fn operations_are_the_same_wherever_the_bytes_are_cut() {
    assert_eq!(read([ALL]), (all(), None));
    assert_eq!(read(ALL.chunks(1)), (all(), None));
    for at in 0..ALL.len() {
        let (before, after) = ALL.split_at(at);
        assert_eq!(read([before, after]), (all(), None), "cut at {at}");
    }
}

#[test]
fn operations_that_the_protocol_does_not_have_are_refused() {
    for bytes in [
        &b"MSG a 1 -1\r\n"[..],
        b"MSG a 1 +1\r\nx\r\n",
        b"MSG a 1 1e3\r\n",
        b"MSG a 1 99999999999999999999\r\n",
        b"MSG a x 1\r\nx\r\n",
        b"MSG a 18446744073709551616 1\r\nx\r\n",
        b"MSG a 1\r\n",
        b"MSG a 1 r 1 1\r\n",
        b"MSG a 1 r 1 1 1 1 1\r\n",
        b"MSG a 1 2\r\nxyz\r\n",
        b"MSG a 1 2\r\nx\r\n\r\n",
        b"HMSG a 1 3 2\r\nxxx\r\n",
        b"HMSG a 1 2\r\nxx\r\n",
        b"INFO\r\n",
        b"INFO {\r\n",
        b"INFO {\"max_payload\":-1}\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b"\n",
        b"SUB a 1\r\n",
    ] {
        let (read, error) = read([bytes]);
        assert!(read.is_empty() && error.is_some(), "{} {read:?}", bytes.escape_ascii());
    }
    assert!(read([&vec![b'x'; MAX_LINE][..]]).1.is_some());
    assert_eq!(read([&vec![b'x'; MAX_LINE - 1][..]]), (vec![], None));
}

#[test]
fn a_message_that_is_too_large_is_skipped_and_takes_no_memory() {
    let mut reader = Reader::default();
    reader.space().extend_from_slice(format!("MSG a 7 {}\r\n", MAX_MESSAGE + 1).as_bytes());
    assert!(matches!(reader.next(), Ok(Some(Operation::TooLarge { sid: 7, .. }))));
    let piece = [b'x'; 60_000];
    let mut left = MAX_MESSAGE + 1;
    while left > 0 {
        let length = left.min(piece.len());
        reader.space().extend_from_slice(&piece[..length]);
        assert!(matches!(reader.next(), Ok(None)));
        assert!(reader.buffer.capacity() <= 2 * READ_BUFFER);
        left -= length;
    }
    reader.space().extend_from_slice(b"\r\nPING\r\n");
    assert!(matches!(reader.next(), Ok(Some(Operation::Ping))));
    let huge = format!("MSG a 1 {}\r\n", usize::MAX);
    assert_eq!(read([huge.as_bytes(), b"PING\r\n"]).1, None);
}

#[test]
fn the_buffer_of_a_large_message_is_given_back() {
    let mut reader = Reader::default();
    let size = 4 * 1024 * 1024;
    reader.space().extend_from_slice(format!("MSG a 7 {size}\r\n").as_bytes());
    assert!(matches!(reader.next(), Ok(None)));
    reader.space().extend_from_slice(&vec![b'x'; size]);
    reader.space().extend_from_slice(b"\r\nPI");
    assert!(matches!(reader.next(), Ok(Some(Operation::Message(_)))));
    assert!(reader.buffer.capacity() <= READ_BUFFER, "{}", reader.buffer.capacity());
    reader.space().extend_from_slice(b"NG\r\n");
    assert!(matches!(reader.next(), Ok(Some(Operation::Ping))));
}

#[test]
fn a_client_writes_valid_operations_and_refuses_invalid_header_fields() {
    let mut out = BytesMut::new();
    write_subscribe(&mut out, "a.*", 7);
    write_unsubscribe(&mut out, 7);
    let mut headers = Headers::default();
    write_publish(&mut out, "a", &header_block(&headers).unwrap(), b"xy");
    headers.insert("Id", "1");
    write_publish(&mut out, "a", &header_block(&headers).unwrap(), b"xy");
    let written = "SUB a.* 7\r\nUNSUB 7\r\nPUB a 2\r\nxy\r\nHPUB a 19 21\r\nNATS/1.0\r\nId: 1\r\n\r\nxy\r\n";
    assert_eq!(std::str::from_utf8(&out), Ok(written));
    for (name, value) in
        [("", "x"), ("a b", "x"), ("a:b", "x"), ("\u{e9}", "x"), ("a", "x\r\ny"), ("a", "\n")]
    {
        let mut headers = Headers::default();
        headers.insert(name, value);
        assert!(header_block(&headers).is_err(), "{name:?} {value:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_in_any_parts_end_as_an_operation_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        lines in prop::collection::vec(
            "(MSG|HMSG|INFO|PING|-ERR|\\+OK)( [a{}\"0-9:.>-]{0,9}){0,6}\r?\n?[a-z\r\n]{0,12}",
            0..8,
        ),
        size in 1_usize..50,
    ) {
        let text = lines.concat();
        for bytes in [&bytes[..], text.as_bytes()] {
            // The same result at once and in pieces.
            let (whole, ended) = read([bytes]);
            let (parts, end) = read(bytes.chunks(size));
            prop_assert_eq!(ended.is_some(), end.is_some());
            prop_assert_eq!(whole, parts);
        }
    }
}
