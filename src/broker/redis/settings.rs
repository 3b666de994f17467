//! The settings of the Redis servers, read and checked once.

use redis::{Client, IntoConnectionInfo, RedisConnectionInfo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::answers::words;
use super::cluster::Cluster;
use super::servers::Servers;
use crate::broker::SettingError;
use crate::config;

/// Reads the settings and their files, so that an error fails here and not at every attempt to connect.
pub(in crate::broker) fn servers(config: &config::Broker) -> Result<Servers, SettingError> {
    let error = |key: &str, why: String| SettingError(format!("{key}: {why}"));
    // The redis crate uses only the process-wide provider of rustls. One that is already installed works as well.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let separator = config.separator;
    if separator.is_whitespace() || separator.is_control() || "*>?[]\\%^".contains(separator) {
        return Err(error("broker.separator", format!("{separator:?} has another meaning in a channel")));
    }
    if config.cluster {
        let (user, password) = (config.user.as_ref(), config.password.as_ref());
        let seeds: Result<Vec<Client>, _> = config
            .url
            .0
            .split(',')
            .map(|url| client(config, url.trim(), user, password).map(|(client, _)| client))
            .collect();
        let seeds = seeds?;
        let like = seeds.first().cloned().ok_or_else(|| error("broker.url", "is empty".into()))?;
        return Ok(Servers::Cluster(Cluster::start(like, seeds)));
    }
    let Some(name) = &config.sentinel else {
        let (client, _) = client(config, &config.url.0, config.user.as_ref(), config.password.as_ref())?;
        return Ok(Servers::One(client));
    };
    // Sentinels have their own users, which are in their URLs, and no databases.
    let clients: Result<Vec<_>, _> =
        config.url.0.split(',').map(|url| client(config, url.trim(), None, None)).collect();
    let clients = clients?;
    let db = clients.first().map_or(0, |(_, login)| login.db());
    let login =
        login(RedisConnectionInfo::default().set_db(db), config.user.as_ref(), config.password.as_ref())?;
    let sentinels = clients.into_iter().map(|(client, _)| client).collect();
    Ok(Servers::Sentinels { name: name.clone(), sentinels, login })
}

/// A client of one address, with the login of its URL.
fn client(
    config: &config::Broker,
    url: &str,
    user: Option<&String>,
    password: Option<&config::Secret>,
) -> Result<(Client, RedisConnectionInfo), SettingError> {
    let error = |key: &str, why: String| SettingError(format!("{key}: {why}"));
    // url::ParseError never quotes the text, which may have a password.
    let url = url::Url::parse(url).map_err(|why| error("broker.url", why.to_string()))?;
    let encrypted = match url.scheme() {
        "redis" | "redis+unix" | "unix" => false,
        "rediss" => true,
        other => {
            return Err(error(
                "broker.url",
                format!("{other}:// is not redis://, rediss:// or redis+unix://"),
            ));
        }
    };
    if url.fragment().is_some() {
        return Err(error("broker.url", "has a # fragment; certificates are always verified".into()));
    }
    let info = url.into_connection_info().map_err(|why| error("broker.url", words(&why)))?;

    let written = info.redis_settings().clone();
    let mut login = login(written.clone(), user, password)?;
    if config.sentinel.is_some() {
        login = login.set_db(0);
    }
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let info = info.set_redis_settings(login).set_tcp_settings(tcp);

    let tls = &config.tls;
    if !encrypted {
        for (key, file) in
            [("broker.tls.ca", &tls.ca), ("broker.tls.cert", &tls.cert), ("broker.tls.key", &tls.key)]
        {
            if file.is_some() {
                return Err(error(key, "it is set, but broker.url does not use TLS; write rediss://".into()));
            }
        }
        let client = Client::open(info).map_err(|why| error("broker.url", words(&why)))?;
        return Ok((client, written));
    }
    let certificates = certificates(tls)?;
    let client =
        Client::build_with_tls(info, certificates).map_err(|why| error("broker.tls", words(&why)))?;
    Ok((client, written))
}

/// Completes the login of a URL with the keys of `[broker]`.
fn login(
    mut login: RedisConnectionInfo,
    user: Option<&String>,
    password: Option<&config::Secret>,
) -> Result<RedisConnectionInfo, SettingError> {
    // A restricted ACL would deny the naming of the library, and log it at every connection.
    login = login.set_protocol(redis::ProtocolVersion::RESP2).set_skip_set_lib_name();
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(password) = password {
        login = login.set_password(&password.0);
    }
    if login.username().is_some() && login.password().is_none() {
        let why = "broker.user: it is set without broker.password; set both or neither";
        return Err(SettingError(why.into()));
    }
    Ok(login)
}

/// Reads the certificates. Otherwise the library would notice a wrong key only when it connects.
fn certificates(tls: &config::BrokerTls) -> Result<redis::TlsCertificates, SettingError> {
    let error = |key: &str, file: &std::path::Path, why: String| {
        SettingError(format!("{key}: {}: {why}", file.display()))
    };
    let read =
        |key, file: &std::path::Path| std::fs::read(file).map_err(|why| error(key, file, why.to_string()));
    let chain = |key, file: &std::path::Path, pem: &[u8]| {
        let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|why| error(key, file, why.to_string()))?;
        if chain.is_empty() {
            return Err(error(key, file, "it has no certificate".into()));
        }
        Ok(chain)
    };

    let mut roots = rustls::RootCertStore::empty();
    let root_cert = match &tls.ca {
        None => None,
        Some(file) => {
            let pem = read("broker.tls.ca", file)?;
            for certificate in chain("broker.tls.ca", file, &pem)? {
                roots.add(certificate).map_err(|why| error("broker.tls.ca", file, why.to_string()))?;
            }
            Some(pem)
        }
    };
    let client_tls = match (&tls.cert, &tls.key) {
        (None, None) => None,
        (Some(_), None) => {
            return Err(SettingError("broker.tls.cert: it is set without broker.tls.key".into()));
        }
        (None, Some(_)) => {
            return Err(SettingError("broker.tls.key: it is set without broker.tls.cert".into()));
        }
        (Some(cert), Some(key)) => {
            let client_cert = read("broker.tls.cert", cert)?;
            let client_key = read("broker.tls.key", key)?;
            let chain = chain("broker.tls.cert", cert, &client_cert)?;
            let private = PrivateKeyDer::from_pem_slice(&client_key)
                .map_err(|why| error("broker.tls.key", key, why.to_string()))?;
            rustls::ClientConfig::builder()
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, private)
                .map_err(|why| error("broker.tls.key", key, why.to_string()))?;
            Some(redis::ClientTlsConfig { client_cert, client_key })
        }
    };
    Ok(redis::TlsCertificates { client_tls, root_cert })
}
