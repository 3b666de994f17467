//! A separate clock for one process: a library that is loaded before the system's, and reads from a file by how much the
//! time of day differs. It works on Linux only.

use std::path::PathBuf;
use std::process::Command;

/// Replaces the time of day by the system's time plus the number of milliseconds in a file.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long *offset;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    offset = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME && offset) {
        long nanoseconds = time->tv_nsec + *offset % 1000 * 1000000;
        time->tv_sec += *offset / 1000;
        time->tv_sec += nanoseconds / 1000000000;
        time->tv_nsec = nanoseconds % 1000000000;
        if (time->tv_nsec < 0) {
            time->tv_nsec += 1000000000;
            time->tv_sec -= 1;
        }
    }
    return result;
}
"#;

/// A clock that can be set.
pub struct Clock {
    pub directory: tempfile::TempDir,
}

impl Clock {
    /// A clock that is ahead of the system's by this many milliseconds.
    pub fn ahead_by(milliseconds: i64) -> Self {
        let clock = Clock { directory: tempfile::tempdir().unwrap() };
        let source = clock.directory.path().join("clock.c");
        std::fs::write(&source, LIBRARY).unwrap();
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(clock.library()).arg(source).status();
        assert!(built.expect("a C compiler, which the build needs as well").success());
        clock.set(milliseconds);
        clock
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("clock.so")
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("offset")
    }

    /// Sets the clock ahead by this many milliseconds.
    pub fn set(&self, milliseconds: i64) {
        use std::os::unix::fs::FileExt;
        let file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(self.file()).unwrap();
        file.write_all_at(&milliseconds.to_ne_bytes(), 0).unwrap();
    }

    /// The environment of a process that goes by it.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        [("LD_PRELOAD", text(self.library())), ("CLOCK_OFFSET", text(self.file()))]
    }
}
