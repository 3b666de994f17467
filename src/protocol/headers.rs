//! Header fields of a message, as in NATS. Redis has none; for a Redis Stream, fields of the entry take their place.

/// Header fields of a message. Values of one name keep their order. Names compare without case. Redis has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    fields: Vec<(String, String)>,
    is_damaged: bool,
}

impl Headers {
    /// Adds a field.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.fields.push((name.into(), value.into()));
    }

    /// Marks that the message has a field that cannot be parsed and is missing here.
    pub fn set_damaged(&mut self) {
        self.is_damaged = true;
    }

    /// Whether the message has fields that cannot be parsed.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// The first value of the field called `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// All fields, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}
