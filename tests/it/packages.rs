//! The crate, and the files of a release as `scripts/release` makes them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
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

/// Whether this machine lets a test install a package into a folder; says so if not.
fn can_install() -> bool {
    let user = command("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let can = user && command("dpkg").arg("--version").output().is_ok();
    if !can {
        // Past the test harness, which shows only what failing tests print.
        let said =
            "skipped: a_package_installs_and_is_removed_without_a_trace; it needs dpkg, and to be root\n";
        std::io::stderr().write_all(said.as_bytes()).unwrap();
    }
    can
}

#[test]
fn a_package_installs_and_is_removed_without_a_trace() {
    if !can_install() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (binary, out) = (binary(directory.path()), directory.path().join("out"));
    release(&["packages", "amd64", &binary, out.to_str().unwrap()]);
    let (root, tools) = (directory.path().join("root"), directory.path().join("tools"));
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    for file in ["status", "available"] {
        fs::write(root.join("var/lib/dpkg").join(file), "").unwrap();
    }
    // The scripts of the package run outside of the folder: they must find no systemd to speak to.
    fs::create_dir(&tools).unwrap();
    fs::write(tools.join("systemctl"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tools.join("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    let search = format!("{}:{}:/usr/sbin:/sbin", tools.display(), std::env::var("PATH").unwrap());
    let dpkg = |words: &[&str]| {
        let options = ["--root", root.to_str().unwrap(), "--force-script-chrootless", "--log=/dev/null"];
        content(command("dpkg").args(options).args(words).env("PATH", &search))
    };
    dpkg(&["--install", out.join(format!("topicgate_{VERSION}_amd64.deb")).to_str().unwrap()]);
    let installed = root.join("usr/bin/topicgate");
    let installed = installed.to_str().unwrap();
    assert!(content(command(installed).arg("--version")).contains(VERSION));
    let config = root.join("etc/topicgate/topicgate.toml");
    content(command(installed).args(["check", "--config"]).arg(&config));
    // The unit, with its program where this machine finds it.
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/topicgate.service")).unwrap();
    let verified = directory.path().join("topicgate.service");
    fs::write(&verified, unit.replace("/usr/bin/topicgate", installed)).unwrap();
    let said = content(
        command("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).arg(&verified),
    );
    assert_eq!(said, "");

    fs::write(&config, "drain = \"5s\"\n").unwrap();
    dpkg(&["--remove", "topicgate"]);
    assert!(!Path::new(installed).exists());
    assert!(config.exists(), "what an administrator wrote stays until the package is purged");
    dpkg(&["--purge", "topicgate"]);
    assert_eq!(names(&root), BTreeSet::from(["var".to_owned()]), "dpkg's own records");
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
    let downloads = format!("https://forge.example/someone/topicgate/releases/download/v{VERSION}");
    release(&["formula", &downloads, out]);
    release(&["checksums", out]);
    let formula = fs::read_to_string(Path::new(out).join("topicgate.rb")).unwrap();
    let sums = fs::read_to_string(Path::new(out).join("SHA256SUMS")).unwrap();
    for left in ["@SHA256", "@VERSION@", "@DOWNLOADS@", "@HOMEPAGE@"] {
        assert!(!formula.contains(left), "{formula}");
    }
    assert!(formula.contains("homepage \"https://forge.example/someone/topicgate\""), "{formula}");
    for target in targets {
        let archive = format!("topicgate-{VERSION}-{target}.tar.gz");
        let line = sums.lines().find(|line| line.ends_with(&archive)).unwrap();
        let (url, rest) = formula.split_once(&format!("/{archive}\"\n")).unwrap();
        assert!(url.ends_with(&downloads));
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
