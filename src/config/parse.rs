//! Creates a [`Config`] from the settings, and checks it completely. Each table is read by its own file; checks that need
//! two tables are here.

use std::net::SocketAddr;

use super::admin::Admin;
use super::auth::Auth;
use super::broker::Broker;
use super::cors::Cors;
use super::error::{ConfigError, ConfigErrors};
use super::input::Input;
use super::key::Kind;
use super::keys::KEYS;
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

/// The only environment variable that must not be empty: as "not set" it would mean the embedded broker.
const BROKER_URL: &str = "TOPICGATE_BROKER__URL";

impl Config {
    /// Merges the sources with the built-in defaults, and checks the result.
    ///
    /// # Errors
    /// All errors, not only the first.
    ///
    /// # Examples
    /// As the binary does: from `topicgate.toml`, if it exists, and the environment.
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

    /// Merges the text of a configuration file with the built-in defaults. Reads no file and no environment variable.
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

/// The defaults. `config/topicgate.toml` has the same with explanations; a test compares them.
impl Default for Config {
    fn default() -> Self {
        // With nothing set, nothing is wrong.
        read(&Layers::none()).0
    }
}

/// Checks everything and reports all errors; the configuration can be used only if there is none.
fn read(layers: &Layers) -> (Config, Vec<ConfigError>) {
    let mut input = tree::read(layers);
    if !input.is_set("broker.url") && layers.unset.iter().any(|variable| variable == BROKER_URL) {
        // Here and not in the file of its table, because it is about a missing value.
        input.fail_from(
            "broker.url",
            format!("environment variable {BROKER_URL}"),
            "is empty; name the broker, as in nats://host:4222, or write memory: for the embedded one",
        );
    }
    let has_file = layers.has_file();
    let mut config = tables(&mut input, has_file);
    config.overridden = overridden(layers);
    config.unset.clone_from(&layers.unset);
    config.origins = Origins(Settings::of(&input).into());
    (config, input.into_errors())
}

/// The addresses in the file that a later source overrides, as the image's variable does: otherwise nobody would know why
/// nothing listens on the file's address.
fn overridden(layers: &Layers) -> Vec<String> {
    let addresses = KEYS.iter().filter(|key| key.kind == Kind::Address).map(|key| key.path);
    let of = |path| {
        let (file, written) = layers.overridden(path)?;
        let (written, origin) = (written.as_str()?, layers.origin(path));
        // A flag was typed deliberately.
        origin.starts_with("environment").then(||format!(
            "{path} = {written:?} in {file} has no effect: the {origin} overrides it; unset that, or remove the key from the file"
        ))
    };
    addresses.filter_map(of).collect()
}

fn tables(input: &mut Input<'_>, has_file: bool) -> Config {
    let listen = input.address("listen");
    let admin = Admin::read(input, listen);
    let hosts = hosts(input, "hosts");
    let base_path = base_path(input, "base_path");
    let (broker, kind) = Broker::read(input);
    let limits = Limits::read(input);
    let auth = Auth::read(input);
    let is_bare = !has_file && !["broker", "auth"].into_iter().any(|table| input.has_table(table));
    let is_demo = is_demo(input, has_file, is_bare, kind, listen);
    if is_demo {
        open_everything(input);
    }
    let streams = Streams::read(input);
    let around = Around { broker: &broker, kind, limits: &limits, streams: &streams, auth: &auth };
    let topics = Rule::read_all(input, around);
    Config {
        listen,
        hosts,
        base_path,
        is_demo,
        has_first_look: is_demo && is_bare,
        drain: input.get("drain"),
        admin,
        broker,
        topics,
        streams,
        limits,
        proxies: Proxies::read(input),
        auth,
        cors: Cors::read(input),
        tls: Tls::read(input),
        log: Log::read(input),
        traces: Traces::read(input),
        unset: vec![],
        overridden: vec![],
        origins: Origins::default(),
    }
}

/// Whether everyone may use the embedded broker without a rule: on a loopback address, or if `demo` is set, and if no
/// setting names callers or a broker.
fn is_demo(
    input: &mut Input<'_>,
    has_file: bool,
    is_bare: bool,
    kind: Option<BrokerKind>,
    listen: SocketAddr,
) -> bool {
    const DEMO: &str = "demo";
    let is_asked_for: bool = input.get(DEMO);
    if is_asked_for && has_file && input.origin(DEMO) != "environment variable TOPICGATE_DEMO" {
        input.refuse(DEMO, "has no effect in a file, which ends the demo; write rules, or remove it");
    }
    let is_for_this_machine = listen.ip().is_loopback();
    let is_embedded = input.rules().is_none() && kind == Some(BrokerKind::Memory);
    is_embedded && (is_for_this_machine || is_asked_for && is_bare)
}

/// The embedded broker has nothing to leak, so a newcomer's first try should just work.
fn open_everything(input: &mut Input<'_>) {
    input.set_rules(1);
    for (key, text) in [("match", EVERYTHING), ("read", "anyone"), ("publish", "anyone")] {
        input.set(format!("topics.0.{key}"), Given::Text(text.into()));
    }
}
