//! How many messages one process takes in from the broker, when each goes to one reader only.
//!
//! The bound is the bare reader: one subscription, and everything that one read brings is passed on in one write to one reader,
//! whatever topic it is of.

use anyhow::Result;

use super::{Scale, Session, Step, topics};
use crate::load::{Spec, Work};
use crate::target::Running;

/// Messages in flight: as many as keep the server busy, and fewer than a topic log holds.
pub(super) const WINDOW: u32 = 800;

pub(super) fn ingest(running: &Running, count: u32, scale: Scale) -> Result<Vec<Step>> {
    let work = Work { topics: topics("ingest", count), readers: 1, size: 200, json: false };
    let load = running.load(work.clone(), count == 1)?;
    let specs: Vec<Spec> = if running.is_bound() {
        // Two of the topics name all of them.
        let named = [work.topics[0].clone(), "ingest/others".to_owned()];
        vec![Spec { topics: count, ..Spec::new(running.stages(&named, None).into()) }]
    } else {
        let spec = |topic: &String| Spec::new(running.stages(std::slice::from_ref(topic), None).into());
        work.topics.iter().map(spec).collect()
    };
    let streams = specs.len() as u32;
    let mut session = Session::open(running, load, scale, streams, specs)?;
    session.steps.clear(); // what a connection costs, other scenarios say
    session.scale.time = scale.time * 2;
    session.closed_loop(WINDOW, work)?;
    Ok(session.steps)
}
