//! The words of the wire, as docs/protocol.md defines them: topics, sources, event ids, where a stream starts, codes and
//! frames. It is the leaf of the crate: it imports nothing of ours, does no input or output, and knows no broker.

pub mod codes;
pub mod event_id;
pub mod filter_index;
pub mod frame;
pub mod headers;
pub mod seek;
pub mod source;
pub mod topic;
