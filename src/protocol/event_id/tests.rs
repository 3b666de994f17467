use super::*;

fn sequence(head: u64) -> Sequence {
    let sequence = Sequence::new(Epoch("k3x9q2m7".into()));
    sequence.publish(Seq::new(head));
    sequence
}

#[test]
fn event_ids_of_this_process_are_read_back() {
    let sequence = sequence(57);
    assert_eq!(&*sequence.event_id(Seq::new(57), None), "k3x9q2m7-57");
    let own = |number, publisher_id| ParsedEventId::Own { position: Seq::new(number).into(), publisher_id };
    assert_eq!(sequence.read_event_id("k3x9q2m7-57"), own(57, None));
    assert_eq!(sequence.read_event_id("k3x9q2m7-0"), own(0, None));
    let id = sequence.event_id(Seq::new(12), Some("order-7-b"));
    assert_eq!(&*id, "k3x9q2m7-12-order-7-b");
    assert_eq!(id.publisher_id(), Some("order-7-b"));
    assert_eq!(sequence.read_event_id(&id), own(12, Some("order-7-b")));
}

#[test]
fn event_ids_of_others_are_never_taken_for_its_own() {
    let sequence = sequence(57);
    assert_eq!(sequence.read_event_id("k3x9q2m7-58"), ParsedEventId::Unknown);
    assert_eq!(sequence.read_event_id("aaaaaaaa-3"), ParsedEventId::Foreign { publisher_id: None });
    assert_eq!(
        sequence.read_event_id("aaaaaaaa-3-x-1"),
        ParsedEventId::Foreign { publisher_id: Some("x-1") }
    );
    for other in [
        "order-7",
        "",
        "k3x9q2m7",
        "k3x9q2m7-",
        "k3x9q2m7--1",
        "k3x9q2m7-+5",
        "k3x9q2m7-99999999999999999999",
    ] {
        assert_eq!(sequence.read_event_id(other), ParsedEventId::Publisher(other), "{other:?}");
    }
}

#[test]
fn epochs_differ_and_have_the_form_that_is_read_back() {
    let (a, b) = (Epoch::random(), Epoch::random());
    assert_ne!(a, b);
    let id = format!("{a}-0");
    assert_eq!(
        Sequence::new(a).read_event_id(&id),
        ParsedEventId::Own { position: Seq::START.into(), publisher_id: None }
    );
}

#[test]
fn a_stored_stream_has_the_same_ids_in_every_process_and_other_ids_once_it_is_created_again() {
    let tag = |made: &[u8]| Tag::of(&[b"ORDERS", made]);
    let [one, other] = [0, 9].map(|head| Sequence::stored(tag(b"monday"), Seq::new(head)));
    let anew = Sequence::stored(tag(b"tuesday"), Seq::START);
    let id = one.event_id(Seq::new(41), Some("x"));
    assert_eq!(
        other.read_event_id(&id),
        ParsedEventId::Own { position: Seq::new(41).into(), publisher_id: None }
    );
    assert_eq!(anew.read_event_id(&id), ParsedEventId::Foreign { publisher_id: None });
    for bad in ["", "k3x9q2m7-41", "41", "1700000000000-0", &format!("{id}x"), &format!("{id}-1")] {
        assert_eq!(one.read_event_id(bad), ParsedEventId::Unknown, "{bad:?}");
    }
}

#[test]
fn a_number_that_the_broker_has_assigned_twice_is_no_position() {
    let tag = || Tag::of(&[b"ORDERS"]);
    let sequence = Sequence::stored(tag(), Seq::new(5)).in_place_of(&Sequence::stored(tag(), Seq::new(9)));
    let is_own = |number| {
        let number = Seq::new(number);
        let (id, part) = (sequence.event_id(number, None), sequence.component(number));
        let own = ParsedEventId::Own { position: number.into(), publisher_id: None };
        let is_own = sequence.read_event_id(&id) == own;
        assert_eq!(sequence.read_component(&part).is_some(), is_own);
        is_own
    };
    assert_eq!([0, 1, 6, 9, 10].map(is_own), [true, false, false, false, true]);
    // The broker has lost that message, and has not given that number again yet.
    let again = Sequence::stored(tag(), Seq::new(7)).in_place_of(&sequence);
    assert_eq!(again.given_before, Some(Seq::new(9)));
    let other = Sequence::stored(Tag::of(&[b"PRICES"]), Seq::new(5)).in_place_of(&sequence);
    assert_eq!(other.given_before, None);
}

#[test]
fn the_id_of_an_entry_of_a_redis_stream_is_its_own() {
    let sequence = Sequence::of_entry_ids(Tag::of(&[b"orders"]), Seq::START, SystemTime::UNIX_EPOCH);
    let number = pack_entry_id(1_700_000_000_000, 7).unwrap();
    assert_eq!(&*sequence.event_id(number, None), "1700000000000-7");
    let own = ParsedEventId::Own { position: number.into(), publisher_id: None };
    assert_eq!(sequence.read_event_id("1700000000000-7"), own);
    assert!(
        pack_entry_id(1_700_000_000_000, 8) > Some(number)
            && pack_entry_id(1_700_000_000_001, 0) > Some(number)
    );
    for bad in ["1700000000000", "-", "a-1", "1-", "+1-1", "99999999999999999-0", "1-9999999"] {
        assert_eq!(sequence.read_event_id(bad), ParsedEventId::Unknown, "{bad:?}");
    }
}

#[test]
fn a_position_before_the_first_entry_is_known_to_those_that_have_followed_the_key_since_then() {
    let at = |ms, head| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        Sequence::of_entry_ids(Tag::of(&[b"orders"]), head, time)
    };
    let place = |sequence: &Sequence, id: &str| match sequence.read_event_id(id) {
        ParsedEventId::Own { position, .. } if is_before_first(position.number) => None,
        ParsedEventId::Own { position, .. } => Some(position.number.get()),
        other => panic!("{id}: {other:?}"),
    };
    let ms = 1_700_000_000_000;
    let entry = pack_entry_id(ms + 5, 0).unwrap();
    let (sequence, later) = (at(ms, Seq::START), at(ms + 1, Seq::START));
    for position in [0, 1, 1023].map(Seq::new) {
        let (id, part) = (sequence.event_id(position, None), sequence.component(position));
        assert_eq!(place(&sequence, &id), Some(position.get()), "{id}");
        assert_eq!(sequence.read_component(&part), Some(position.into()), "{part}");
        for other in [&later, &at(0, Seq::START), &at(ms - 1, entry)] {
            assert_eq!(place(other, &id), None, "{id}");
            assert!(
                other.read_component(&part).is_some_and(|position| is_before_first(position.number)),
                "{part}"
            );
        }
        let (id, part) = (later.event_id(position, None), later.component(position));
        assert_eq!(
            (place(&sequence, &id), sequence.read_component(&part)),
            (Some(0), Some(Seq::START.into()))
        );
    }
    let (before, behind) =
        (later.event_id(Seq::START, None), at(ms + 9, Seq::START).event_id(Seq::START, None));
    sequence.publish(entry);
    assert_eq!(&*sequence.event_id(entry, None), "1700000000005-0");
    assert_eq!(place(&sequence, &before), Some(0));
    assert_eq!(place(&sequence, &behind), None, "the key was empty after an entry: that has been deleted");
    assert_eq!(place(&sequence, "0-0"), None, "nobody knows when the key was empty");
    assert_eq!(&*at(0, Seq::START).event_id(Seq::START, None), "0-0");
    assert_eq!(place(&sequence, "1700000000005-0"), Some(entry.get()));
}

#[test]
fn a_position_among_values_is_read_back_and_any_other_second_number_is_unknown() {
    let tag = || Tag::of(&[b"KV_PRICES"]);
    let sequence = Sequence::stored(tag(), Seq::new(5)).in_place_of(&Sequence::stored(tag(), Seq::new(9)));
    let at = |number, as_of| Position { number: Seq::new(number), as_of: Seq::new(as_of) };
    for position in [at(0, 10), at(12, 13), at(61, 62), at(12_345, u64::MAX)] {
        let id = sequence.event_id(position, None);
        assert_eq!(sequence.read_event_id(&id), ParsedEventId::Own { position, publisher_id: None }, "{id}");
        assert_eq!(sequence.read_component(&sequence.component(position)), Some(position), "{id}");
        let of_message = format!("{}-{}", sequence.name, position.number);
        assert_eq!((id.of_message(), id.publisher_id()), (&*of_message, None));
    }
    // The broker gives that number again.
    assert_eq!(
        sequence.read_event_id(&sequence.event_id(at(0, 9), None)),
        ParsedEventId::Foreign { publisher_id: None }
    );
    for numbers in ["12_12", "13_12", "12_", "_12", "12_13_14", "12_x", "_"] {
        let id = format!("{}-{numbers}", sequence.name);
        assert_eq!(sequence.read_event_id(&id), ParsedEventId::Unknown, "{id}");
        assert_eq!(sequence.read_component(&format!("{}{numbers}", sequence.name)), None, "{id}");
    }
    let all = vec![sequence.component(at(u64::MAX - 1, u64::MAX)); MAX_SEQUENCES];
    let id = EventId::of_components(all.iter().map(String::as_str));
    assert!(id.len() <= MAX_EVENT_ID, "{}", id.len());
    let part = id.split(COMPONENTS).next_back().unwrap();
    assert_eq!(sequence.read_component(part), Some(Seq::new(u64::MAX - 1).into()));
}

#[test]
fn the_largest_event_id_has_room_for_the_most_sequences_at_their_largest_positions() {
    let process = sequence(u64::MAX);
    let history = Sequence::stored(Tag::of(&[b"x"]), Seq::START);
    let parts = std::iter::once(&process).chain(std::iter::repeat_n(&history, MAX_SEQUENCES - 1));
    let id = parts.map(|part| part.component(Seq::MAX)).collect::<Vec<_>>().join(".");
    assert!(id.len() <= MAX_EVENT_ID, "{}", id.len());
    for number in [0, 1, 61, 62, 12_345_678, u64::MAX].map(Seq::new) {
        assert_eq!(history.read_component(&history.component(number)), Some(number.into()));
    }
    for bad in [
        "",
        "abcdef1",
        &format!("{}-", history.name),
        &history.name,
        &format!("{}zzzzzzzzzzzzzz", history.name),
    ] {
        assert_eq!(history.read_component(bad), None, "{bad:?}");
    }
    assert_eq!(sequence(5).read_component("k3x9q2m76"), None, "beyond what was published");
}
