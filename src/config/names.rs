//! Names whose form other standards define.

use ::url::Host;

use super::input::Input;
use super::value::Given;

/// The host names at `key`, in the form that requests are compared with.
pub(super) fn hosts(input: &mut Input<'_>, key: &str) -> Vec<String> {
    let mut hosts = vec![];
    for name in input.get::<Vec<String>>(key) {
        // `Host::parse` takes a port for a part of the name, and its error is vague; this one is precise.
        match Host::parse(&name) {
            Ok(host) if !name.is_empty() => hosts.push(host.to_string()),
            _ => input.refuse(
                key,
                format!(
                    "{name:?} is not a host name; write it without scheme, port and path: app.example.com"
                ),
            ),
        }
    }
    input.set_in_force(key, Some(Given::List(hosts.clone())));
    hosts
}

/// The path at `key`, without the slash at its end.
pub(super) fn base_path(input: &mut Input<'_>, key: &str) -> String {
    let Some(given) = input.get_if_any::<String>(key) else { return String::new() };
    let path = given.trim_end_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    let mut segments = path.split('/').skip(1);
    let is_path = path.starts_with('/')
        && segments.all(|segment| {
            !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(is_plain)
        });
    let of_gateway = ["/topics", "/topicgate.js"];
    let first = path.split('/').nth(1).map(|first| format!("/{first}")).unwrap_or_default();
    if of_gateway.contains(&first.as_str()) {
        input.refuse(
            key,
            format!("{given:?} begins with {first}, which the gateway itself serves; choose another path"),
        );
    } else if !path.is_empty() && !is_path {
        let what =
            "is not a path; write it with a slash before each segment, of letters, digits and -._~: /events";
        input.refuse(key, format!("{given:?} {what}"));
    }
    input.set_in_force(key, Some(Given::Text(path.into())));
    path.to_owned()
}

/// RFC 9110, the name of a field.
pub(super) fn is_token(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.chars().all(allowed)
}

/// RFC 6901. The empty pointer is the whole document.
pub(super) fn is_pointer(text: &str) -> bool {
    let escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    text.is_empty() || text.starts_with('/') && escapes
}

/// What is wrong with a text that is not [`is_pointer`].
pub(super) fn not_a_pointer(text: &str) -> String {
    format!("{text:?} is not a JSON pointer; write one as in /data/id (~0 stands for ~, ~1 for /)")
}
