//! The types of the wire protocol, as docs/protocol.md defines it: topics, sources, numbers, event ids, starts of
//! streams, codes and frames. It imports no other folder, does no I/O, and knows no broker.

pub mod codes;
pub mod comments;
pub mod event_id;
pub mod filter_index;
pub mod frame;
pub mod gzip;
pub mod headers;
pub mod publisher;
pub mod seek;
pub mod seq;
pub mod source;
pub mod topic;
pub mod view;
