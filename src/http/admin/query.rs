//! The query of a request to the admin listener. It is stricter than on the public routes: an unknown parameter is
//! refused, because ignoring a misspelt one would show, or end, more than was meant.

use std::borrow::Cow;
use std::net::IpAddr;

use axum::http::Uri;
use ipnet::IpNet;

use crate::gateway::Wanted;
use crate::http::problem::Problem;
use crate::protocol::codes::RefusalCode;
use crate::protocol::topic::Filter;

/// Items of one answer: the default, and the maximum.
const PAGE: usize = 100;
pub(super) const LONGEST_PAGE: usize = 1000;

/// The parameters of a request that have not been read yet.
pub(super) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub(super) fn of(uri: &'a Uri) -> Self {
        // An empty parameter is a form field that was left empty.
        let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        Query(pairs.filter(|(_, value)| !value.is_empty()).collect())
    }

    /// The value of `name`, if present. A second one stays in the list and is refused at the end.
    pub(super) fn text(&mut self, name: &str) -> Option<Cow<'a, str>> {
        let index = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.remove(index).1)
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<u64>, Problem> {
        let number = self.text(name).map(|text| text.parse());
        number.transpose().map_err(|_| bad_query(format!("{name} must be a whole number, such as 17")))
    }

    /// How many items the answer may have.
    pub(super) fn limit(&mut self) -> Result<usize, Problem> {
        match self.number("limit")? {
            None => Ok(PAGE),
            Some(limit) if (1..=LONGEST_PAGE as u64).contains(&limit) => Ok(limit as usize),
            Some(_) => Err(bad_query(format!("limit must be a number from 1 to {LONGEST_PAGE}"))),
        }
    }

    /// A topic or pattern, with `/` between its segments.
    pub(super) fn topic(&mut self, longest: usize) -> Result<Option<Filter>, Problem> {
        Ok(self.text("topic").map(|topic| Filter::parse(&topic, longest)).transpose()?)
    }

    pub(super) fn wanted(&mut self, longest_topic: usize) -> Result<Wanted, Problem> {
        let address = self.text("address").map(|text| network(&text).ok_or(text)).transpose();
        Ok(Wanted {
            id: self.number("id")?,
            topic: self.topic(longest_topic)?,
            address: address.map_err(|text| {
                bad_query(format!(
                    "address must be an address such as 192.0.2.1 or a network such as 10.0.0.0/8, not {text:?}"
                ))
            })?,
            subject: self.text("subject").map(Cow::into_owned),
        })
    }

    /// # Errors
    /// A parameter is left that no route knows.
    pub(super) fn end(self) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(bad_query(format!("{name:?} is not a parameter here, or is given twice"))),
        }
    }
}

pub(super) fn bad_query(detail: impl Into<String>) -> Problem {
    Problem::new(RefusalCode::BadQuery, detail)
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
