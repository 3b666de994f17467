//! The two text formats that scrapers read: OpenMetrics, for scrapers that request it, and Prometheus' older format, which
//! all others understand.

use axum::http::{HeaderMap, header};

/// OpenMetrics 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Converts an OpenMetrics text for a client with these header fields. Returns the text and its content type.
pub fn negotiate(open_metrics: String, headers: &HeaderMap) -> (&'static str, String) {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if accepted.any(|value| value.contains("application/openmetrics-text")) {
        (OPEN_METRICS, open_metrics)
    } else {
        (PROMETHEUS, prometheus(&open_metrics))
    }
}

/// The older format has the same samples. In it, a metric has the same name as its samples, and there is neither a type
/// `info` nor an end mark.
fn prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut suffix = "";
    // The help of a metric comes before its type, and both need the type.
    let lines: Vec<&str> = open_metrics.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let kind = lines.get(index + 1).and_then(|line| line.rsplit(' ').next());
            suffix = match kind {
                Some("counter") => "_total",
                Some("info") => "_info",
                _ => "",
            };
            let (name, words) = help.split_once(' ').unwrap_or((help, ""));
            text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let kind = if kind == "info" { "gauge" } else { kind };
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if *line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = "# HELP a Requests.\n# TYPE a counter\na_total{b=\"# HELP c\"} 1\n# HELP d Depth.\n# TYPE d gauge\nd 2\n\
        # HELP e Version.\n# TYPE e info\ne_info{v=\"1\"} 1\n# EOF\n";

    #[test]
    fn the_older_text_format_has_the_same_samples_under_its_own_names() {
        assert_eq!(
            prometheus(OPEN),
            "# HELP a_total Requests.\n# TYPE a_total counter\na_total{b=\"# HELP c\"} 1\n# HELP d Depth.\n# TYPE d gauge\nd 2\n\
             # HELP e_info Version.\n# TYPE e_info gauge\ne_info{v=\"1\"} 1\n"
        );
    }

    #[test]
    fn openmetrics_is_sent_only_on_request() {
        for (accept, kind) in [
            ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2", OPEN_METRICS),
            ("text/plain", PROMETHEUS),
            ("*/*", PROMETHEUS),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(negotiate(OPEN.into(), &headers).0, kind, "{accept}");
        }
        assert_eq!(negotiate(OPEN.into(), &HeaderMap::new()).0, PROMETHEUS);
    }
}
