//! The `topicgate` binary.

fn main() {}
