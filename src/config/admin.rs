//! `[admin]`: the listener for probes, metrics and the console.

use std::net::SocketAddr;

use super::input::Input;
use super::names::hosts;
use super::value::Given;

/// `[admin]`: the listener for probes, metrics and the console, never public.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// `admin.listen`.
    pub listen: SocketAddr,
    /// `admin.hosts`: names that a request's `Host` may have there, in addition to addresses, names of this machine and
    /// names without a dot.
    pub hosts: Vec<String>,
    /// `admin.console`: whether the console is served. Not set: only if `listen` is a loopback address.
    pub console: bool,
}

impl Admin {
    /// `public` is the listener for browsers.
    pub(super) fn read(input: &mut Input<'_>, public: SocketAddr) -> Self {
        let listen = input.address("admin.listen");
        let console = input.get_if_any("admin.console").unwrap_or(listen.ip().is_loopback());
        input.set_in_force("admin.console", Some(Given::Flag(console)));
        let anywhere = public.ip().is_unspecified() || listen.ip().is_unspecified();
        if listen.port() != 0 && listen.port() == public.port() && (anywhere || listen.ip() == public.ip()) {
            let problem = format!("{listen} clashes with listen = {public}; give it a port of its own");
            input.refuse("admin.listen", problem);
        }
        Admin { listen, hosts: hosts(input, "admin.hosts"), console }
    }
}
