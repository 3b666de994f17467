//! Bar charts as SVG for a document: panels side by side, each with its own scale. They are readable on a light and on a
//! dark background.

use std::fmt::Write as _;

const LABELS: f64 = 140.0;
const PANEL: f64 = 230.0;
const ROW: f64 = 24.0;
const TOP: f64 = 62.0;

/// One measure of every target.
#[derive(Debug)]
pub struct Panel {
    /// The title above its bars.
    pub title: String,
    /// The unit of the values.
    pub unit: String,
    /// Name and value.
    pub rows: Vec<(&'static str, f64)>,
}

/// A chart of panels, with one row per target.
pub fn svg(title: &str, panels: &[Panel]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in panels.iter().flat_map(|panel| &panel.rows) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let width = LABELS + PANEL * panels.len() as f64;
    let height = TOP + ROW * names.len() as f64 + 10.0;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <style>text {{ fill: #333 }} .g {{ fill: #d9480f }} .p {{ fill: #868e96 }} .b {{ fill: #1c7ed6 }} \
         @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} }}</style>\n\
         <text x=\"8\" y=\"20\" font-size=\"14\" font-weight=\"600\">{title}</text>"
    );
    for (row, name) in names.iter().enumerate() {
        let y = TOP + ROW * row as f64 + 14.0;
        let _ = writeln!(out, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{name}</text>", LABELS - 8.0);
    }
    for (column, panel) in panels.iter().enumerate() {
        let x = LABELS + PANEL * column as f64;
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"{}\" font-weight=\"600\">{}, {}</text>",
            TOP - 14.0,
            panel.title,
            panel.unit
        );
        let largest = panel.rows.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
        for (name, value) in &panel.rows {
            let Some(row) = names.iter().position(|other| other == name) else { continue };
            let y = TOP + ROW * row as f64;
            let class = match *name {
                "bound" => "b",
                name if name.starts_with("topicgate") => "g",
                _ => "p",
            };
            let length = ((PANEL - 70.0) * value / largest).max(1.0);
            let digits = if *value < 10.0 { 2 } else { 1 };
            let _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" rx=\"2\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{value:.digits$}</text>",
                ROW - 6.0,
                x + length + 5.0,
                y + 14.0
            );
        }
    }
    out.push_str("</svg>\n");
    out
}
