//! How many messages one process takes in from the broker, when each goes to one reader only.

use anyhow::Result;

use super::{Scale, Session, Step, topics};
use crate::load::{Spec, Work};
use crate::target::Running;

/// Messages in flight: as many as keep the server busy, and fewer than a topic log holds.
pub(super) const WINDOW: u32 = 800;

pub(super) fn ingest(running: &Running, count: u32, scale: Scale) -> Result<Vec<Step>> {
    let work = Work { topics: topics("ingest", count), readers: 1, size: 200, json: false };
    let load = running.load(work.clone(), count == 1)?;
    let spec = |topic: &String| Spec::new(running.stages(std::slice::from_ref(topic), None).into());
    let specs: Vec<Spec> = work.topics.iter().map(spec).collect();
    let streams = specs.len() as u32;
    let mut session = Session::open(running, load, scale, streams, specs)?;
    session.steps.clear(); // what a connection costs, other scenarios say
    session.scale.time = scale.time * 2;
    session.closed_loop(WINDOW, work)?;
    Ok(session.steps)
}
