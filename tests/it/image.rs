//! The image, built and run by a container engine. `make image` runs this; the other tests need no engine.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::common::deploy::{command, content};
use crate::common::ports::free_port;
use crate::common::{client, within};

const NAME: &str = "topicgate-image-test";

/// A build compiles the whole gateway.
const STARTED: Duration = Duration::from_secs(60);

/// The engine of this machine that answers, and what it needs to build an image with a health check.
fn engine() -> (&'static str, &'static [&'static str]) {
    let answers = |name: &str| command(name).arg("info").output().is_ok_and(|output| output.status.success());
    // Podman's own format of images has no health check.
    let all: [(_, &[_]); 2] = [("docker", &[]), ("podman", &["--format", "docker"])];
    all.into_iter().find(|(name, _)| answers(name)).expect("an engine that answers: docker or podman")
}

/// A container that runs, and where its port is on this machine; removed with this.
struct Container(&'static str, SocketAddr);

impl Container {
    fn start(engine: &'static str, options: &[&str]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let run = ["run", "--detach", "--read-only", "--cap-drop", "ALL", "--name", NAME];
        let publish = ["--publish", &format!("{address}:8080")];
        content(command(engine).args(run).args(publish).args(options).arg(NAME));
        Container(engine, address)
    }

    /// Waits until the gateway says so: an engine accepts connections before it does.
    async fn listens(&self) -> SocketAddr {
        within("it listens", STARTED, async {
            while !self.logs().contains("topicgate is listening") {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        self.1
    }

    /// The status of a message that somebody publishes.
    async fn publish(&self) -> u16 {
        client::request(self.1, "POST", "/topics/demo/hello", &[], b"it works").await.status
    }

    fn inspect(&self, format: &str) -> String {
        content(command(self.0).args(["inspect", "--format", format, NAME])).trim().to_owned()
    }

    /// Whether its health check passes. Docker runs it by itself; podman only with systemd around it.
    fn is_healthy(&self) -> bool {
        match self.0 {
            "podman" => {
                command("podman").args(["healthcheck", "run", NAME]).output().unwrap().status.success()
            }
            _ => self.inspect("{{.State.Health.Status}}") == "healthy",
        }
    }

    fn logs(&self) -> String {
        content(command(self.0).args(["logs", NAME]))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new(self.0).args(["rm", "--force", NAME]).output();
    }
}

#[tokio::test]
#[ignore = "needs a container engine: make image"]
async fn the_image_serves_its_page_is_healthy_and_ends_in_order() {
    let (engine, options) = engine();
    content(command(engine).args(["build", "--tag", NAME]).args(options).arg("."));
    let container = Container::start(engine, &[]);
    let page = client::request(container.listens().await, "GET", "/", &[], b"").await;
    assert_eq!(page.status, 200);
    assert_eq!(container.publish().await, 202, "without any configuration it is a demo");
    assert!(container.logs().contains("demo"), "and says so: {}", container.logs());
    assert_ne!(content(command(engine).args(["inspect", "--format", "{{.Config.User}}", NAME])).trim(), "");
    within("healthy", STARTED, async {
        while !container.is_healthy() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
    content(command(engine).args(["stop", "-t", "20", NAME]));
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "0", "{}", container.logs());
    drop(container);

    let rules = "TOPICGATE_TOPICS=[{ match = \"orders/**\", read = \"anyone\" }]";
    let container = Container::start(engine, &["--env", rules]);
    container.listens().await;
    assert_eq!(container.publish().await, 404, "a rule ends the demo");
}
