//! Documents that must agree with other files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::common::deploy::{command, config, content, path};
use crate::common::document::blocks;
use strum::VariantArray as _;
use topicgate::internals::protocol::codes::CloseCode;

const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// The anchor of a heading.
fn anchors(document: &str, level: &str) -> BTreeSet<String> {
    let headings = document.lines().filter_map(|line| line.strip_prefix(level)?.strip_prefix(' '));
    let is_kept = |letter: &char| letter.is_alphanumeric() || ['-', '_'].contains(letter);
    headings
        .map(|heading| heading.to_lowercase().replace(' ', "-").chars().filter(is_kept).collect())
        .collect()
}

/// The documents that people read, by their path in the repository.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "deploy", "bench/src"].map(|folder| root.join(folder));
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found.push(root.join("llms.txt"));
    found
}

#[test]
fn each_alert_has_its_heading_and_each_heading_its_alert() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/alerts.yml");
    let rules = std::fs::read_to_string(path).unwrap();
    let alerts: BTreeSet<String> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .map(str::to_lowercase)
        .collect();
    let (_, part) = OPERATIONS.split_once("\n## Alerts\n").unwrap();
    assert!(!alerts.is_empty());
    assert_eq!(anchors(part, "###"), alerts);
}

#[test]
fn links_within_and_between_the_documents_lead_somewhere() {
    let mut links = 0;
    for path in documents() {
        let name = path.display();
        let document = std::fs::read_to_string(&path).unwrap();
        for link in document.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{name}: {link}");
            links += 1;
            if !anchor.is_empty() {
                let target = std::fs::read_to_string(target).unwrap();
                let levels = ["#", "##", "###", "####"];
                let is_known = levels.iter().any(|level| anchors(&target, level).contains(anchor));
                assert!(is_known, "{name}: {link}");
            }
        }
    }
    assert!(links > 50, "{links}");
}

#[test]
fn the_site_has_a_page_for_every_document() {
    let contents = include_str!("../../docs/SUMMARY.md");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in documents() {
        let within = path.strip_prefix(root).unwrap().to_str().unwrap();
        // What `make bench` writes docs/benchmarks.md from, the contents themselves, and what only programs read.
        if within.starts_with("bench/") || within == "docs/SUMMARY.md" || within == "llms.txt" {
            continue;
        }
        let from_docs = within.strip_prefix("docs/").map_or(format!("../{within}"), str::to_owned);
        assert!(contents.contains(&format!("]({from_docs})")), "docs/SUMMARY.md does not have {within}");
    }
}

#[test]
fn llms_txt_names_every_page_of_the_documents_and_both_descriptions() {
    let listed = include_str!("../../llms.txt");
    let entries = std::fs::read_dir(path("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = entries.map(|name| name.into_string().unwrap());
    for name in names.filter(|name| name.ends_with(".md") || name.ends_with(".yaml")) {
        // The contents of the site, which list the same pages.
        assert!(name == "SUMMARY.md" || listed.contains(&format!("](docs/{name})")), "llms.txt lacks {name}");
    }
}

#[test]
fn every_configuration_in_the_guides_is_valid() {
    let guides = [
        include_str!("../../docs/tutorial-nats.md"),
        include_str!("../../docs/tutorial-redis.md"),
        include_str!("../../docs/migrate.md"),
        include_str!("../../docs/scaling.md"),
    ];
    let blocks: Vec<String> = guides.iter().flat_map(|guide| blocks(guide, "", "toml")).collect();
    assert!(blocks.len() > 10, "{}", blocks.len());
    for block in blocks {
        config(&block, &[]);
    }
}

/// The version of a server, from its output: the first word that is a number with a dot.
fn version(program: PathBuf) -> String {
    let said = content(command(program.to_str().unwrap()).arg("--version"));
    let words = said.split([' ', '=']).map(|word| word.trim_start_matches('v').trim());
    words.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap().to_owned()
}

#[test]
fn the_table_of_versions_has_the_servers_that_the_tests_start() {
    let scaling = include_str!("../../docs/scaling.md");
    let nats = version(path(".tools/bin/nats-server"));
    assert!(scaling.contains(&format!("| NATS | {nats} |")), "docs/scaling.md does not have NATS {nats}");
    // Redis is what the system has. Another one is no fault of a machine, but the table is made where CI runs.
    let redis = version(std::env::var_os("REDIS_SERVER").map_or("redis-server".into(), PathBuf::from));
    let minor = redis.rsplit_once('.').unwrap().0;
    let is_there = scaling.contains(&format!("| Redis | {minor} |"));
    assert!(is_there || std::env::var_os("CI").is_none(), "docs/scaling.md does not have Redis {minor}");
}

#[test]
fn the_protocol_has_every_code_that_a_stream_may_end_with() {
    let protocol = include_str!("../../docs/protocol.md");
    // A reader that is cut off, or has left, receives no code.
    let told = CloseCode::VARIANTS.iter().filter(|code| ![CloseCode::Slow, CloseCode::Gone].contains(code));
    for code in told {
        assert!(protocol.contains(&format!("| `{}` |", code.as_str())), "{}", code.as_str());
    }
}
