//! JetStream and KV.

use tokio::sync::mpsc;

use super::Settings;
use crate::broker::{Event, StoredCommand};

pub(in crate::broker) async fn run(
    _settings: Settings,
    mut commands: mpsc::Receiver<StoredCommand>,
    _events: mpsc::Sender<Event>,
) {
    while commands.recv().await.is_some() {}
}
