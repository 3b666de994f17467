//! What people install: the crate, and the files of a release as `scripts/release` makes them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::common::deploy::{command, content, path, read};

/// A program that runs the gateway: small, so that packing it takes no time.
fn binary(directory: &Path) -> String {
    let file = directory.join("topicgate");
    let text = format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_topicgate"));
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file.to_str().unwrap().to_owned()
}

fn release(words: &[&str]) -> String {
    content(command(path("scripts/release").to_str().unwrap()).args(words).env_remove("GITHUB_REF_NAME"))
}

/// The names in `directory`.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[test]
fn an_archive_runs_where_it_is_unpacked_and_has_the_manual() {
    let directory = tempfile::tempdir().unwrap();
    let (binary, out) = (binary(directory.path()), directory.path().join("out"));
    release(&["archive", "x86_64-unknown-linux-musl", &binary, out.to_str().unwrap()]);
    let name = format!("topicgate-{VERSION}-x86_64-unknown-linux-musl");
    content(command("tar").arg("-xzf").arg(out.join(format!("{name}.tar.gz"))).arg("-C").arg(&out));
    let unpacked = out.join(name);
    assert!(
        content(command(unpacked.join("topicgate").to_str().unwrap()).arg("--version")).contains(VERSION)
    );
    let check = command(unpacked.join("topicgate").to_str().unwrap())
        .args(["check", "--config", "config/topicgate.toml"])
        .current_dir(&unpacked)
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    for file in ["LICENSE", "README.md", "CHANGELOG.md", "topicgate.service", "completions/topicgate.bash"] {
        assert!(unpacked.join(file).exists(), "{file}");
    }
    // A page of the manual for every command that --help lists, but for those that make these files.
    let help = content(command(&binary).arg("--help"));
    let commands = help.split("Commands:\n").nth(1).unwrap().lines().take_while(|line| !line.is_empty());
    let words = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let wanted = words.filter(|word| !["", "help", "man", "completions"].contains(word));
    let mut wanted: BTreeSet<String> = wanted.map(|word| format!("topicgate-{word}.1")).collect();
    wanted.insert("topicgate.1".into());
    assert_eq!(names(&unpacked.join("man")), wanted);
}

#[test]
fn a_package_has_the_unit_with_the_path_of_the_program_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let (binary, out) = (binary(directory.path()), directory.path().join("out"));
    release(&["packages", "amd64", &binary, out.to_str().unwrap()]);
    let (deb, rpm) = (format!("topicgate_{VERSION}_amd64.deb"), format!("topicgate-{VERSION}-1.x86_64.rpm"));
    assert_eq!(names(&out), BTreeSet::from([deb.clone(), rpm.clone()]));
    assert!(fs::read(out.join(rpm)).unwrap().starts_with(&[0xed, 0xab, 0xee, 0xdb]), "an rpm begins so");
    // A .deb is an `ar` of tars; without Debian's own tools there is no reader for it.
    if cfg!(target_os = "linux") {
        let root = directory.path().join("root");
        content(command("dpkg-deb").arg("--extract").arg(out.join(&deb)).arg(&root));
        let unit = fs::read_to_string(root.join("usr/lib/systemd/system/topicgate.service")).unwrap();
        let started = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/")).unwrap();
        assert!(root.join(started.split(' ').next().unwrap()).exists(), "{started}");
        let config = started.split("--config /").nth(1).unwrap();
        assert!(root.join(config).exists(), "{config}");
        let kept = content(command("dpkg-deb").arg("--info").arg(out.join(&deb)).arg("conffiles"));
        assert_eq!(kept.trim(), format!("/{config}"), "an upgrade keeps what was changed");
    }
}

#[test]
fn the_formula_has_the_checksums_of_the_archives() {
    let directory = tempfile::tempdir().unwrap();
    let (binary, out) = (binary(directory.path()), directory.path().join("out"));
    let out = out.to_str().unwrap();
    let targets = ["aarch64-apple-darwin", "x86_64-apple-darwin"].into_iter();
    let targets = targets.chain(["aarch64-unknown-linux-musl", "x86_64-unknown-linux-musl"]);
    for target in targets.clone() {
        release(&["archive", target, &binary, out]);
    }
    release(&["formula", "https://forge.example/releases", out]);
    release(&["checksums", out]);
    let formula = fs::read_to_string(Path::new(out).join("topicgate.rb")).unwrap();
    let sums = fs::read_to_string(Path::new(out).join("SHA256SUMS")).unwrap();
    assert!(!formula.contains("@SHA256") && !formula.contains("@VERSION@"), "{formula}");
    for target in targets {
        let archive = format!("topicgate-{VERSION}-{target}.tar.gz");
        let line = sums.lines().find(|line| line.ends_with(&archive)).unwrap();
        let (url, rest) = formula.split_once(&format!("/{archive}\"\n")).unwrap();
        assert!(url.ends_with("https://forge.example/releases"));
        assert!(rest.trim_start().starts_with(&format!("sha256 \"{}\"", &line[..64])), "{target}");
    }
}

#[test]
fn the_crate_contains_only_the_files_that_a_user_needs() {
    let listed =
        content(command(env!("CARGO")).args(["package", "--list", "--offline", "--allow-dirty", "--quiet"]));
    let files: BTreeSet<&str> = listed.lines().collect();
    for file in ["Cargo.lock", "LICENSE", "README.md", "src/main.rs", "config/topicgate.toml"] {
        assert!(files.contains(file), "{file} is missing");
    }
    for file in &files {
        let top = file.split('/').next().unwrap();
        let wanted = ["src", "config", "deploy", "docs"].contains(&top)
            || top.ends_with(".md")
            || ["Cargo.toml", "Cargo.toml.orig", "Cargo.lock", ".cargo_vcs_info.json", "LICENSE"]
                .contains(&top);
        assert!(wanted, "{file}: nobody who installs the crate needs it");
    }
    let readme = read("README.md");
    for link in readme.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let file = link.split('#').next().unwrap();
        assert!(file.contains("://") || file.is_empty() || files.contains(file), "README.md: {link}");
    }
}
