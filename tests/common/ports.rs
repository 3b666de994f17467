//! Ports of this machine for the servers that tests start.

use std::fs::File;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// A port that nothing listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A port that stays free while its server is away, and the one 10,000 above, which a node of a Redis
/// cluster uses too. Both are below those that the system gives to outgoing connections, and a locked file
/// keeps other processes of tests away.
pub struct Port {
    pub number: u16,
    _lock: File,
}

impl Port {
    pub fn reserve() -> Self {
        static GIVEN: AtomicU32 = AtomicU32::new(0);
        let directory = std::env::temp_dir().join("topicgate-test-ports");
        std::fs::create_dir_all(&directory).unwrap();
        let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        for _ in 0..10_000 {
            // Another process of tests begins elsewhere, so that few ports are tried.
            let place = std::process::id() * 100 + GIVEN.fetch_add(1, Ordering::Relaxed);
            let number = 10_000 + u16::try_from(place % 10_000).unwrap();
            let Ok(lock) = File::create(directory.join(number.to_string())) else { continue };
            if lock.try_lock().is_ok() && is_free(number) && is_free(number + 10_000) {
                return Port { number, _lock: lock };
            }
        }
        panic!("no port between 10000 and 19999 is free");
    }
}
