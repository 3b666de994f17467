//! Redis Streams.

use redis::Client;
use tokio::sync::mpsc;

use crate::broker::{Event, StoredCommand};

pub(in crate::broker) async fn run(
    _client: Client,
    _separator: char,
    mut commands: mpsc::Receiver<StoredCommand>,
    _events: mpsc::Sender<Event>,
) {
    while commands.recv().await.is_some() {}
}
