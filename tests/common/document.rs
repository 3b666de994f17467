//! The fenced blocks of a document, which must work when a reader copies them.

/// The blocks in `language` under the heading whose words are `heading`; of the whole document if that is empty.
pub fn blocks(document: &str, heading: &str, language: &str) -> Vec<String> {
    let mut found = vec![];
    let mut here = heading.is_empty();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if let Some(fence) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if here && fence == language {
                found.push(block.join("\n") + "\n");
            }
        } else if !heading.is_empty() && line.starts_with('#') {
            here = line.trim_start_matches('#').trim() == heading;
        }
    }
    found
}
