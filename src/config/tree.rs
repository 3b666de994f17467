//! The tree of everything that was set, before a [`super::raw::Raw`] is read from it: finds and removes values by their path.
//! Nothing here knows what a value means.

use std::collections::BTreeSet;

use figment::value::Value;

/// Shows every text of a tree to `see`, with its path; those of a list of texts have the path of the list.
pub(super) fn texts(value: &mut Value, path: &mut Vec<String>, see: &mut impl FnMut(&str, &mut String)) {
    match value {
        Value::String(_, text) => see(&path.join("."), text),
        Value::Dict(_, dict) => {
            for (key, value) in dict {
                path.push(key.clone());
                texts(value, path, see);
                path.pop();
            }
        }
        Value::Array(_, items) => {
            for (index, item) in items.iter_mut().enumerate() {
                if let Value::String(_, text) = item {
                    see(&path.join("."), text);
                    continue;
                }
                path.push(index.to_string());
                texts(item, path, see);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Where a list stands for a table: `[[broker]]`. serde would take its items for the keys, in their order.
pub(super) fn lists_for_tables(
    value: &Value,
    path: &mut Vec<String>,
    keys: &BTreeSet<String>,
    found: &mut Vec<Vec<String>>,
) {
    let mut look_into = |key: String, value: &Value| {
        path.push(key);
        let names: Vec<&str> =
            path.iter().map(String::as_str).filter(|key| key.parse::<usize>().is_err()).collect();
        let inside = names.join(".") + ".";
        let is_table = inside != "topics." && keys.iter().any(|key| key.starts_with(&inside));
        match value {
            Value::Array(..) if is_table => found.push(path.clone()),
            _ => lists_for_tables(value, path, keys, found),
        }
        path.pop();
    };
    match value {
        Value::Dict(_, dict) => dict.iter().for_each(|(key, value)| look_into(key.clone(), value)),
        Value::Array(_, items) => {
            items.iter().enumerate().for_each(|(index, item)| look_into(index.to_string(), item));
        }
        _ => {}
    }
}

/// Where there is a text and nothing in it.
pub(super) fn empty_texts(values: &mut Value) -> Vec<String> {
    let mut empty = vec![];
    texts(values, &mut vec![], &mut |path, text| {
        if text.is_empty() {
            empty.push(path.to_owned());
        }
    });
    empty
}

/// Takes the value at `path` out of a tree. An item of a list stays, since the others would change their numbers.
pub(super) fn remove(value: &mut Value, path: &[String]) -> bool {
    match (value, path) {
        (Value::Dict(_, dict), [key]) => dict.remove(key).is_some(),
        (Value::Dict(_, dict), [key, rest @ ..]) => {
            dict.get_mut(key).is_some_and(|value| remove(value, rest))
        }
        (Value::Array(_, items), [index, rest @ ..]) => {
            let item = index.parse::<usize>().ok().and_then(|index| items.get_mut(index));
            item.is_some_and(|value| remove(value, rest))
        }
        _ => false,
    }
}
