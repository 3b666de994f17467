use super::*;
use crate::auth::Caller;
use crate::config::Config;
use crate::reader::{Principal, Reader};
use crate::stream::table::Table;

fn clients(limits: Limits) -> Arc<Clients> {
    Clients::new(&limits, Table::new(1).clock())
}

fn stream(address: &str, subject: Option<&str>) -> Arc<ReaderHandle> {
    let caller = |subject: &str| Caller { subject: Some(subject.into()), ..Caller::default() };
    let principal = subject.map_or(Principal::Anyone, |subject| Principal::Caller(Arc::new(caller(subject))));
    let reader = Reader { address: address.parse().unwrap(), principal, ..Reader::default() };
    Arc::new(ReaderHandle::new(1, reader, Millis::at(0)))
}

#[test]
fn an_ipv6_address_counts_by_its_64_and_an_ipv4_address_by_itself() {
    let clients = clients(Limits { streams_per_address: 1, ..Config::default().limits });
    let _held =
        ["2001:db8:0:1::1", "10.0.0.1"].map(|address| clients.enter(stream(address, None), 1).unwrap());
    for (address, full) in [
        ("2001:db8:0:1:ffff::9", true),
        ("2001:db8:0:2::1", false),
        ("10.0.0.1", true),
        ("10.0.0.2", false),
        ("::10.0.0.1", false),
    ] {
        let refused = clients.enter(stream(address, None), 1).err();
        assert_eq!(refused, full.then_some(CloseCode::TooManyStreams), "{address}");
    }
}

#[test]
fn the_streams_of_a_subject_are_limited_across_addresses_and_forgotten_with_the_last() {
    let limits = Limits { streams_per_subject: 2, opens_per_second: 1_000, ..Config::default().limits };
    let clients = clients(limits);
    let enter = |address, subject| clients.enter(stream(address, Some(subject)), 1);
    let held = ["10.0.0.1", "10.0.0.2"].map(|address| enter(address, "ann").unwrap());
    assert_eq!(enter("10.0.0.3", "ann").unwrap_err(), CloseCode::TooManySubjectStreams);
    assert_eq!(clients.sweep().addresses, 2, "a refused stream is not counted");
    let _bob = enter("10.0.0.1", "bob").unwrap();
    let _nobody = clients.enter(stream("10.0.0.1", None), 1).unwrap();
    let usage = clients.sweep();
    assert_eq!((usage.subjects, usage.most_of_subject, usage.most_of_address), (2, 2, 3));
    drop(held);
    assert_eq!(clients.sweep().subjects, 1);
    assert!(enter("10.0.0.3", "ann").is_ok());
}

#[test]
fn above_the_bound_only_known_addresses_are_admitted() {
    let clients = clients(Limits { streams: 1, ..Config::default().limits });
    let admit = |n: u32| clients.admit(std::net::Ipv4Addr::from_bits(n).into());
    for n in 0..=IDLE_ADDRESSES as u32 {
        admit(n).unwrap();
    }
    assert_eq!(admit(u32::MAX).unwrap_err(), CloseCode::Overloaded);
    admit(0).unwrap();
    let full = clients.counts.lock().addresses.capacity();
    while clients.sweep().addresses > 0 {
        std::thread::yield_now(); // until the bucket of the last is full again, which takes 10 ms
    }
    assert!(clients.counts.lock().addresses.capacity() < full / 4);
    admit(u32::MAX).unwrap();
}
