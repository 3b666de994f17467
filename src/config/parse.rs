//! From what was set to a [`Config`] that cannot be wrong. Each table is read by its own file; what needs two tables is here.

use super::admin::Admin;
use super::auth::Auth;
use super::broker::Broker;
use super::cors::Cors;
use super::error::{ConfigError, ConfigErrors};
use super::input::Input;
use super::layers::{FILE, Layers, Sources};
use super::limits::Limits;
use super::log::Log;
use super::names::{base_path, hosts};
use super::proxies::Proxies;
use super::rule::{Around, EVERYTHING, Rule};
use super::settings::{Origins, Settings};
use super::streams::Streams;
use super::tls::Tls;
use super::traces::Traces;
use super::url::BrokerKind;
use super::value::Given;
use super::{Config, tree};

/// The environment variable of the one key that is not left out by setting it to nothing: the embedded broker would run.
const BROKER_URL: &str = "TOPICGATE_BROKER__URL";

impl Config {
    /// Lays the sources over the built-in defaults and checks the whole.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first.
    ///
    /// # Examples
    /// As the binary does it: from `topicgate.toml`, if there is one, and the environment.
    ///
    /// ```
    /// use topicgate::{Config, Sources};
    ///
    /// let config = Config::load(&Sources::gather(None, vec![])?)?;
    /// for warning in config.warnings() {
    ///     eprintln!("{warning}");
    /// }
    /// # Ok::<(), topicgate::ConfigErrors>(())
    /// ```
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let (config, errors) = read(&Layers::of(sources)?);
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    /// Lays the text of a configuration file over the built-in defaults. Reads no file and no environment variable.
    ///
    /// # Errors
    /// As [`Config::load`].
    ///
    /// # Examples
    /// ```
    /// use topicgate::Config;
    ///
    /// assert!(Config::from_toml("streams.heartbeat = '20s'").is_ok());
    ///
    /// let errors = Config::from_toml("limits.streams = 'many'").unwrap_err();
    /// assert_eq!(errors.0[0].key, "limits.streams");
    /// ```
    pub fn from_toml(text: &str) -> Result<Self, ConfigErrors> {
        Config::load(&Sources { file: Some((FILE.into(), text.into())), ..Sources::default() })
    }
}

/// What holds where nothing is set. `config/topicgate.toml` says the same with explanations; a test compares them.
impl Default for Config {
    fn default() -> Self {
        // With nothing set, nothing is wrong.
        read(&Layers::none()).0
    }
}

/// Checks everything and reports everything; the configuration is of use only if nothing was reported.
fn read(layers: &Layers) -> (Config, Vec<ConfigError>) {
    let mut input = tree::read(layers);
    if !input.is_set("broker.url") && layers.unset.iter().any(|variable| variable == BROKER_URL) {
        // Here, and not in its table, because it is about a value that is not there.
        input.fail_from(
            "broker.url",
            format!("environment variable {BROKER_URL}"),
            "is empty; name the broker, as in nats://host:4222, or write memory: for the embedded one",
        );
    }
    let mut config = tables(&mut input);
    config.unset.clone_from(&layers.unset);
    config.origins = Origins(Settings::of(&input).into());
    (config, input.into_errors())
}

fn tables(input: &mut Input<'_>) -> Config {
    let listen = input.address("listen");
    let admin = Admin::read(input, listen);
    let hosts = hosts(input, "hosts");
    let base_path = base_path(input, "base_path");
    let (broker, kind) = Broker::read(input);
    let limits = Limits::read(input);
    let auth = Auth::read(input);
    if input.rules().is_none() && kind == Some(BrokerKind::Memory) && listen.ip().is_loopback() {
        open_everything(input);
    }
    let topics = Rule::read_all(input, Around { broker: &broker, kind, limits: &limits, auth: &auth });
    Config {
        listen,
        hosts,
        base_path,
        drain: input.get("drain"),
        admin,
        broker,
        topics,
        streams: Streams::read(input),
        limits,
        proxies: Proxies::read(input),
        auth,
        cors: Cors::read(input),
        tls: Tls::read(input),
        log: Log::read(input),
        traces: Traces::read(input),
        unset: vec![],
        origins: Origins::default(),
    }
}

/// With nothing to leak from and nobody to leak to, a newcomer's first try should just work.
fn open_everything(input: &mut Input<'_>) {
    input.set_rules(1);
    for (key, text) in [("match", EVERYTHING), ("read", "anyone"), ("publish", "anyone")] {
        input.set(format!("topics.0.{key}"), Given::Text(text.into()));
    }
}
