//! An entry of `cors.origins`: its form, and the pages that it admits.

use std::fmt;

use ::url::Url;

/// Pages of other origins that may read and publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `*`: every page, also one without an origin of its own.
    Any,
    /// One origin, as browsers send it: scheme, host and port.
    Exact(String),
    /// `https://*.example.com`: every name below a domain, but not the domain itself.
    Subdomains {
        /// `https://`
        scheme: String,
        /// `.example.com`, with the port if there is one.
        rest: String,
    },
}

impl Origin {
    /// Reads an entry. The error completes a sentence that begins with the entry.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Origin::Any);
        }
        let Some((scheme, rest)) = text.split_once("*.").filter(|(scheme, _)| scheme.ends_with("://")) else {
            return exact(text).map(Origin::Exact);
        };
        // The part after the wildcard must have the form of an origin, so it is checked as one.
        exact(&format!("{scheme}any.{rest}")).map_err(|problem| problem.replacen("any.", "*.", 1))?;
        let domain = rest.split_once(':').map_or(rest, |(domain, _)| domain);
        match domain.split('.').filter(|label| !label.is_empty()).count() {
            0 | 1 => {
                Err(format!("admits everyone's names below {domain}; write at least two labels after the *"))
            }
            _ if domain.ends_with('.') => {
                Err("ends in a dot; write it as in https://*.example.com".to_owned())
            }
            _ => Ok(Origin::Subdomains { scheme: scheme.to_owned(), rest: format!(".{rest}") }),
        }
    }

    /// Whether it admits a page of `origin`, as a browser sent it.
    pub fn admits(&self, origin: &str) -> bool {
        match self {
            Origin::Any => true,
            Origin::Exact(exact) => exact == origin,
            Origin::Subdomains { scheme, rest } => {
                let name = origin.strip_prefix(&**scheme).and_then(|host| host.strip_suffix(&**rest));
                // Names in DNS have no other characters. The URL standard accepts more, which are not needed here.
                let is_label = |label: &str| {
                    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
                    !label.is_empty() && label.bytes().all(allowed)
                };
                name.is_some_and(|name| name.split('.').all(is_label))
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Any => f.write_str("*"),
            Origin::Exact(exact) => f.write_str(exact),
            Origin::Subdomains { scheme, rest } => write!(f, "{scheme}*{rest}"),
        }
    }
}

/// Browsers send an origin in one form only, and it is compared as text.
fn exact(text: &str) -> Result<String, String> {
    const FORM: &str = "write scheme://host or scheme://host:port, as in https://app.example.com";
    let url = Url::parse(text).map_err(|_| format!("is not an origin; {FORM}"))?;
    let host = url.host_str().filter(|host| !host.is_empty() && text.contains("://"));
    let Some(host) = host else { return Err(format!("is not an origin; {FORM}")) };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    if host.contains('*') {
        return Err(
            "has a * that is not all of its first label; write it as in https://*.example.com".to_owned()
        );
    }
    let exact = format!("{}://{host}{port}", url.scheme());
    if exact == text {
        Ok(exact)
    } else {
        Err(format!("is not the form in which browsers send it; write {exact}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_origin_admits_subdomains_and_no_lookalikes() {
        let plain = Origin::parse("https://*.example.com").unwrap();
        for origin in
            ["https://a.example.com", "https://a.b.example.com", "https://xn--bcher-kva.example.com"]
        {
            assert!(plain.admits(origin), "{origin}");
        }
        for origin in [
            "https://example.com",
            "https://.example.com",
            "https://a..example.com",
            "https://aexample.com",
            "https://a.example.com.evil.com",
            "https://a.example.com:443",
            "https://a.example.com:8443",
            "https://a.example.com.",
            "https://a.example.com/",
            "https://evil.com/.example.com",
            "https://evil.com#.example.com",
            "https://evil.com:80.example.com",
            "https://evil.com@a.example.com",
            "https://evil,a.example.com",
            "https://a b.example.com",
            "https://A.example.com",
            "https://bücher.example.com",
            "http://a.example.com",
            "ahttps://a.example.com",
            "https://a.EXAMPLE.com",
            "null",
            "*",
            "",
        ] {
            assert!(!plain.admits(origin), "{origin}");
        }
        let port = Origin::parse("http://*.dev.example:8080").unwrap();
        assert!(port.admits("http://a.dev.example:8080"));
        for origin in ["http://a.dev.example", "http://a.dev.example:80808080", "http://a.dev.example:80"] {
            assert!(!port.admits(origin), "{origin}");
        }
    }

    #[test]
    fn an_entry_is_written_back_as_it_was_read() {
        for text in ["*", "https://a.example", "http://localhost:3000", "https://*.example.com:8443"] {
            assert_eq!(Origin::parse(text).unwrap().to_string(), text);
        }
    }
}
