//! Which part of the gateway may import which. The list below is docs/architecture.md in code: it reads the imports of
//! `src/` and fails on one that the list does not have, on an entry that nothing needs any more, and on a circle.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Each folder of `src/` and the folders that it may import, from the top down. A folder imports only folders
/// that stand below it.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("cli", &["app", "auth", "net", "metrics", "config", "protocol"]),
    (
        "app",
        &[
            "http", "gateway", "ingest", "log", "reader", "auth", "broker", "traces", "net", "metrics",
            "config", "protocol",
        ],
    ),
    (
        "http",
        &[
            "gateway", "stream", "ingest", "log", "reader", "auth", "broker", "net", "metrics", "config",
            "protocol",
        ],
    ),
    (
        "gateway",
        &["stream", "ingest", "log", "reader", "auth", "broker", "traces", "metrics", "config", "protocol"],
    ),
    ("stream", &["log", "reader", "metrics", "protocol"]),
    ("ingest", &["log", "reader", "broker", "traces", "net", "metrics", "protocol"]),
    ("log", &["reader", "net", "metrics", "protocol"]),
    ("reader", &["auth", "net", "config", "protocol"]),
    ("auth", &["net", "metrics", "config", "protocol"]),
    ("broker", &["net", "metrics", "config", "protocol"]),
    ("traces", &["net", "metrics", "config", "protocol"]),
    ("net", &["metrics", "config"]),
    ("metrics", &["config", "protocol"]),
    ("config", &["protocol"]),
    ("protocol", &[]),
];

/// Crates whose types stay inside these modules, and the modules inside them.
const CONFINED: &[(&str, &[&str])] = &[
    ("nkeys", &["broker::nats"]),
    ("redis", &["broker::redis"]),
    // The configuration names algorithms, and two commands make and read tokens.
    ("jsonwebtoken", &["auth", "config::jwt", "cli::commands::signer", "cli::commands::token"]),
    ("opentelemetry", &["traces", "http::trace"]),
    ("zlib_rs", &["protocol::gzip"]),
];

/// A file of `src/`: the path of its module, and each path that it names outside of its tests.
struct File {
    module: String,
    names: BTreeSet<String>,
    /// `pub use` of something that is defined elsewhere: its name here, and where it comes from.
    exports: BTreeMap<String, String>,
}

fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("main.rs")
            {
                let relative = path.strip_prefix(&root).unwrap().with_extension("");
                let module: Vec<_> = relative.iter().map(|part| part.to_str().unwrap()).collect();
                let module = module.join("::");
                let module = module.strip_suffix("::mod").map_or(module.clone(), str::to_owned);
                let module = if module == "lib" { String::new() } else { module };
                files.push(File::read(module, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.retain(|file| !file.module.ends_with("::tests"));
    files.sort_by(|a, b| a.module.cmp(&b.module));
    files
}

impl File {
    fn read(module: String, text: &str) -> File {
        let code = without_tests(text);
        let mut names = BTreeSet::new();
        let mut exports = BTreeMap::new();
        let mut rest = String::new();
        for statement in code.split_inclusive(';') {
            let start = statement.rfind("use ").filter(|&at| {
                let before = statement[..at].trim_end();
                // In a text, "; use" stands on its line: no import does.
                let begins_a_line =
                    at == 0 || statement[before.len()..at].contains('\n') || before.ends_with("pub");
                begins_a_line && before.is_empty()
                    || before.ends_with([';', '}', '{', ')', ']'])
                    || before.ends_with("pub")
            });
            let Some(at) = start else {
                rest.push_str(statement);
                continue;
            };
            rest.push_str(&statement[..at]);
            let public = statement[..at].trim_end().ends_with(['b', ')']);
            for path in leaves(statement[at + 4..].trim_end_matches(';').trim()) {
                let Some(full) = absolute(&module, &path) else {
                    names.insert(format!("::{path}"));
                    continue;
                };
                if public && let Some((_, name)) = full.rsplit_once("::") {
                    exports.insert(name.to_owned(), full.clone());
                }
                names.insert(full);
            }
        }
        for path in paths(&rest) {
            match absolute(&module, &path) {
                Some(full) => names.insert(full),
                None => names.insert(format!("::{path}")),
            };
        }
        File { module, names, exports }
    }
}

/// The text without its comments and without what is compiled for tests alone.
fn without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        if line.trim() == "#[cfg(test)]" {
            let end = line.replace("#[cfg(test)]", "}");
            // An item of one line, or everything up to the bracket that closes it.
            if lines.next().is_some_and(|item| item.ends_with('{')) {
                lines.by_ref().find(|line| *line == end);
            }
            continue;
        }
        code.push_str(line);
        code.push('\n');
    }
    code
}

/// `a::{b, c::{self, d}}` as `a::b`, `a::c`, `a::c::d`.
fn leaves(tree: &str) -> Vec<String> {
    let Some((before, inner)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap().trim();
        return vec![path.trim_end_matches("::self").to_owned()];
    };
    // Text of a macro can look like an import and is none.
    let Some(inner) = inner.trim().strip_suffix('}') else { return Vec::new() };
    let (mut found, mut depth, mut part) = (Vec::new(), 0, String::new());
    for letter in inner.chars().chain([',']) {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        if letter == ',' && depth == 0 {
            if !part.trim().is_empty() {
                found.extend(leaves(part.trim()).iter().map(|leaf| format!("{before}{leaf}")));
            }
            part.clear();
        } else {
            part.push(letter);
        }
    }
    found.iter().map(|path| path.trim_end_matches("::self").to_owned()).collect()
}

/// Every `a::b::c` in code.
fn paths(code: &str) -> Vec<String> {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    let found = code.split(|letter| !is_part(letter)).filter(|path| path.contains("::"));
    found.map(|path| path.trim_matches(':').to_owned()).collect()
}

/// The path from the crate's root; `None` for what is of another crate, or in scope under a name of its own.
fn absolute(module: &str, path: &str) -> Option<String> {
    let mut here: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let mut parts = path.split("::").peekable();
    match *parts.peek()? {
        "crate" => here.clear(),
        "self" => {}
        "super" => {
            here.pop();
            parts.next();
            while parts.peek() == Some(&"super") {
                here.pop();
                parts.next();
            }
            here.extend(parts);
            return Some(here.join("::"));
        }
        _ => return None,
    }
    parts.next();
    here.extend(parts);
    Some(here.join("::"))
}

/// Which file imports which, where a name that a module only re-exports counts as its origin's.
fn imports(files: &[File]) -> BTreeSet<(String, String)> {
    let modules: BTreeMap<&str, &File> = files.iter().map(|file| (file.module.as_str(), file)).collect();
    let mut found = BTreeSet::new();
    for file in files {
        for name in file.names.iter().filter(|name| !name.starts_with("::")) {
            let target = origin(&modules, name);
            if target != file.module && !target.is_empty() {
                found.insert((file.module.clone(), target));
            }
        }
    }
    found
}

/// The module that defines what `name` means.
fn origin(modules: &BTreeMap<&str, &File>, name: &str) -> String {
    let mut name = name.to_owned();
    // No chain of re-exports is longer; one that goes in a circle does not compile.
    for _ in 0..16 {
        let (mut module, mut rest) = (name.as_str(), "");
        while !modules.contains_key(module) {
            let (above, _) = module.rsplit_once("::").unwrap_or(("", module));
            rest = &name[above.len()..];
            module = above;
        }
        let first = rest.trim_start_matches("::").split("::").next().unwrap();
        match modules[module].exports.get(first) {
            Some(from) if !first.is_empty() => name = from.clone(),
            _ => return module.to_owned(),
        }
    }
    name
}

fn is_inside(module: &str, folder: &str) -> bool {
    module.strip_prefix(folder).is_some_and(|rest| rest.starts_with("::"))
}

fn folder(module: &str) -> &str {
    module.split("::").next().unwrap()
}

fn between_folders(imports: &BTreeSet<(String, String)>) -> BTreeMap<(&str, &str), &(String, String)> {
    imports
        .iter()
        .filter(|(from, to)| !from.is_empty() && folder(from) != folder(to))
        .map(|arrow| ((folder(&arrow.0), folder(&arrow.1)), arrow))
        .collect()
}

/// What breaks the list, one line each.
fn violations(files: &[File]) -> Vec<String> {
    let imports = imports(files);
    let arrows = between_folders(&imports);
    let mut found = Vec::new();
    for ((from, to), (importer, imported)) in &arrows {
        if !MAY_IMPORT.iter().any(|(name, allowed)| name == from && allowed.contains(to)) {
            found.push(format!("{from} may not import {to}: {importer} imports {imported}"));
        }
    }
    for (from, allowed) in MAY_IMPORT {
        for to in *allowed {
            if !arrows.contains_key(&(*from, *to)) {
                found.push(format!("{from} no longer imports {to}: take it off the list"));
            }
        }
    }
    for file in files {
        for (package, homes) in CONFINED {
            // A folder may have a crate's name: what its parent calls so is the folder.
            let is_folder =
                homes.iter().any(|home| home.rsplit_once("::") == Some((file.module.as_str(), package)));
            let is_named =
                !is_folder && file.names.iter().any(|name| name.starts_with(&format!("::{package}::")));
            let is_at_home = homes.iter().any(|home| file.module == *home || is_inside(&file.module, home));
            if is_named && !is_at_home {
                found.push(format!("{} names {package}, which stays in {}", file.module, homes.join(", ")));
            }
        }
    }
    found.extend(circles(&imports));
    found
}

/// Files that import each other, by whatever way. A module that only declares and re-exports its children does not import
/// them, so the arrow from a module to those inside it does not count.
fn circles(imports: &BTreeSet<(String, String)>) -> Vec<String> {
    let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in imports {
        if !is_inside(to, from) {
            arrows.entry(from).or_default().insert(to);
        }
    }
    let reach = |start: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start.to_owned()]);
        while let Some(next) = open.pop() {
            for to in arrows.get(next.as_str()).into_iter().flatten() {
                if seen.insert((*to).to_owned()) {
                    open.push((*to).to_owned());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<String>> = arrows.keys().map(|from| (*from, reach(from))).collect();
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for (from, all) in &reached {
        if all.contains(*from) && told.insert(*from) {
            let members: Vec<&str> = reached
                .iter()
                .filter(|(to, back)| all.contains(**to) && back.contains(*from))
                .map(|(to, _)| *to)
                .collect();
            told.extend(&members);
            found.push(format!("a circle: {}", members.join(", ")));
        }
    }
    found
}

/// What still breaks the rules. It only gets shorter.
const KNOWN: &[&str] = &[];

#[test]
fn every_import_is_on_the_list_and_nothing_imports_in_a_circle() {
    let files = files();
    assert!(files.len() > 100, "{}", files.len());
    let found = violations(&files);
    let new: Vec<&String> = found.iter().filter(|line| !KNOWN.contains(&line.as_str())).collect();
    assert!(new.is_empty(), "{new:#?}");
    let mended: Vec<&&str> = KNOWN.iter().filter(|line| !found.iter().any(|found| found == *line)).collect();
    assert!(mended.is_empty(), "take these off the list of what is known: {mended:#?}");
}

#[test]
fn the_list_runs_downwards_and_has_every_folder() {
    let order: Vec<&str> = MAY_IMPORT.iter().map(|(name, _)| *name).collect();
    let folders: BTreeSet<String> = files()
        .iter()
        .filter(|file| !file.module.is_empty())
        .map(|file| folder(&file.module).to_owned())
        .collect();
    assert_eq!(order.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), folders);
    for (place, (name, allowed)) in MAY_IMPORT.iter().enumerate() {
        for below in *allowed {
            assert!(
                order[place + 1..].contains(below),
                "{name} imports {below}, which does not stand below it"
            );
        }
    }
}

#[test]
fn a_forbidden_import_is_found() {
    let with = |module: &str, text: &str| {
        let mut files = files();
        files.retain(|file| file.module != module);
        files.push(File::read(module.to_owned(), text));
        violations(&files).into_iter().filter(|line| line.contains(module)).collect::<Vec<_>>()
    };
    let upwards = with("protocol::codes", "use std::fmt;\nuse crate::{broker::{self, Event}, metrics};\n");
    assert!(upwards.iter().any(|line| line.starts_with("protocol may not import broker")), "{upwards:?}");
    assert!(upwards.iter().any(|line| line.starts_with("protocol may not import metrics")), "{upwards:?}");
    let in_passing = with("log::message", "fn f() { super::super::gateway::open() }\n");
    assert!(in_passing.iter().any(|line| line.starts_with("log may not import gateway")), "{in_passing:?}");
    let library = with("gateway::open", "fn f() -> redis::Client { todo!() }\n");
    assert!(library.iter().any(|line| line.contains("redis")), "{library:?}");
    let circle = with("protocol::codes", "use super::frame::Frame;\n");
    assert!(circle.iter().any(|line| line.starts_with("a circle")), "{circle:?}");
    let in_tests = with("protocol::codes", "#[cfg(test)]\nmod tests {\n    use crate::broker;\n}\n");
    assert!(!in_tests.iter().any(|line| line.contains("broker")), "{in_tests:?}");
}

/// How many public items the library has: the types that `lib.rs` exports, with their public fields, variants and
/// functions. Each is a promise to programs that embed the gateway, so this number only gets lower.
const PUBLIC_ITEMS: usize = 27;

/// The names that `lib.rs` exports to everybody.
fn exported() -> BTreeSet<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let code = without_tests(&text);
    let (public, _) = code.split_once("#[doc(hidden)]\npub mod internals {").unwrap();
    assert!(!public.contains("pub mod") && !public.contains("pub fn") && !public.contains('*'), "{public}");
    let exports = public.split(';').filter_map(|statement| statement.trim().strip_prefix("pub use "));
    exports.flat_map(leaves).map(|path| path.rsplit("::").next().unwrap().to_owned()).collect()
}

/// The public fields, variants and functions of a type, in the text of one file. What is hidden from the documentation is
/// no promise.
fn members(code: &str, name: &str) -> usize {
    let (mut count, mut inside, mut is_hidden) = (0, false, false);
    for line in code.lines() {
        let is_enum = line.starts_with(&format!("pub enum {name} {{"));
        if is_enum || line.starts_with(&format!("pub struct {name} {{")) || line == format!("impl {name} {{")
        {
            inside = true;
        } else if line.starts_with(&format!("pub struct {name}(pub ")) {
            count += 1;
        } else if line == "}" {
            inside = false;
        } else if inside && let Some(item) = line.strip_prefix("    ") {
            let is_variant = item.starts_with(|letter: char| letter.is_ascii_uppercase());
            match item {
                "#[doc(hidden)]" => is_hidden = true,
                _ if item.starts_with("pub ") || is_variant => {
                    count += usize::from(!std::mem::take(&mut is_hidden));
                }
                _ => {}
            }
        }
    }
    count
}

#[test]
fn the_library_promises_no_more_than_before() {
    let exported = exported();
    let mut count = exported.len();
    // The folders in which they are defined; elsewhere there are other types of the same names.
    for folder in ["app", "config"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
        for entry in std::fs::read_dir(folder).unwrap() {
            let code = without_tests(&std::fs::read_to_string(entry.unwrap().path()).unwrap());
            count += exported.iter().map(|name| members(&code, name)).sum::<usize>();
        }
    }
    assert!(exported.contains("Config") && exported.contains("Server"), "{exported:?}");
    assert_eq!(count, PUBLIC_ITEMS, "lower the number, or keep what is new inside: {exported:?}");
}
