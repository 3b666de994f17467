//! Documents that must keep up with other files.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use topicgate::signal::CloseCode;

const OPERATIONS: &str = include_str!("../docs/operations.md");

/// What a page calls the anchor of a heading.
fn anchors(document: &str, level: &str) -> BTreeSet<String> {
    let headings = document.lines().filter_map(|line| line.strip_prefix(level)?.strip_prefix(' '));
    headings
        .map(|heading| heading.to_lowercase().replace(' ', "-").replace(['`', ',', '/', '.', ':'], ""))
        .collect()
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
fn links_within_and_between_these_documents_lead_somewhere() {
    let troubleshooting = include_str!("../docs/troubleshooting.md");
    let documents = [("operations.md", OPERATIONS), ("troubleshooting.md", troubleshooting)];
    let mut links = 0;
    for (name, document) in documents {
        for link in document.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { name } else { file };
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file);
            let target = std::fs::read_to_string(path).unwrap_or_else(|_| panic!("{name}: {link}"));
            let known = &anchors(&target, "##") | &anchors(&target, "###");
            assert!(anchor.is_empty() || known.contains(anchor), "{name}: {link}");
            links += 1;
        }
    }
    assert!(links > 5, "{links}");
}

#[test]
fn the_protocol_has_every_code_that_a_stream_may_end_with() {
    let protocol = include_str!("../docs/protocol.md");
    // Who is cut off, or has left, is told nothing.
    let told = CloseCode::ALL.into_iter().filter(|code| ![CloseCode::Slow, CloseCode::Gone].contains(code));
    for code in told {
        assert!(protocol.contains(&format!("| `{}` |", code.as_str())), "{}", code.as_str());
    }
}
