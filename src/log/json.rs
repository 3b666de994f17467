//! Finds values in a JSON document by pointers (RFC 6901), in one pass, without building the document: all other values
//! are only checked. Values are slices of the document, so numbers keep their digits and members their order.
//!
//! How deep a document is makes no difference, because only the parts on the way to a pointer are entered. If a name
//! comes twice in an object, the last one counts, as in a browser.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The values at `pointers` in the document `text`, in the order of the pointers; `None` for a pointer without a value,
/// and for all of them if `text` is not JSON. There may be up to 32 pointers.
pub(super) fn values<'a, const N: usize>(
    text: &'a str,
    pointers: [Option<&str>; N],
) -> [Option<&'a RawValue>; N] {
    let mut found = [None; N];
    let wanted = (0..N).filter(|index| pointers[*index].is_some());
    let here = wanted.fold(0, |set, index| set | 1 << index);
    let mut document = serde_json::Deserializer::from_str(text);
    let walk = Walk { pointers: &pointers, found: &mut found, here, depth: 0 };
    match walk.deserialize(&mut document).and_then(|()| document.end()) {
        Ok(()) => found,
        Err(_) => [None; N],
    }
}

/// The value as text: the text of a string; anything else as written, without white space between its tokens. `None` for a
/// string that has no text, because it has half a surrogate pair (`"\ud800"`).
pub(super) fn text(value: &RawValue) -> Option<String> {
    let value = value.get();
    if value.starts_with('"') { serde_json::from_str(value).ok() } else { Some(compact(value)) }
}

fn compact(json: &str) -> String {
    let (mut is_in_string, mut is_escaped) = (false, false);
    let keeps = |c: &char| {
        match (is_in_string, is_escaped, c) {
            (true, true, _) => is_escaped = false,
            (true, false, '\\') => is_escaped = true,
            (_, false, '"') => is_in_string = !is_in_string,
            _ => {}
        }
        is_in_string || !c.is_ascii_whitespace()
    };
    json.chars().filter(keeps).collect()
}

/// One value of the document, to which some of the pointers lead.
struct Walk<'p, 'f, 'a> {
    pointers: &'p [Option<&'p str>],
    found: &'f mut [Option<&'a RawValue>],
    /// The pointers that lead here, a bit for each.
    here: u32,
    /// The number of their segments that led here.
    depth: usize,
}

impl Walk<'_, '_, '_> {
    /// The name by which a pointer goes on from here, not decoded. `None`: it ends here.
    fn name(&self, index: usize) -> Option<&str> {
        self.pointers[index]?.split('/').nth(self.depth + 1)
    }

    fn indices(&self) -> impl Iterator<Item = usize> + use<> {
        let here = self.here;
        (0..u32::BITS as usize).filter(move |index| here & 1 << index != 0)
    }

    /// The pointers for which `is_wanted` returns true.
    fn those(&self, is_wanted: impl Fn(Option<&str>) -> bool) -> u32 {
        self.indices().filter(|index| is_wanted(self.name(*index))).fold(0, |set, index| set | 1 << index)
    }

    /// Forgets the values of these pointers, because their name was repeated in the same object.
    fn forget(&mut self, again: u32) {
        for (index, found) in self.found.iter_mut().enumerate() {
            if again & 1 << index != 0 {
                *found = None;
            }
        }
    }
}

/// Whether a segment of a pointer means `name`.
fn means(part: &str, name: &str) -> bool {
    if part.contains('~') { part.replace("~1", "/").replace("~0", "~") == name } else { part == name }
}

impl<'a> DeserializeSeed<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(mut self, value: D) -> Result<(), D::Error> {
        let ending = self.those(|name| name.is_none());
        if ending == 0 {
            return value.deserialize_any(self);
        }
        let raw = <&RawValue as serde::Deserialize>::deserialize(value)?;
        self.indices()
            .filter(|index| ending & 1 << index != 0)
            .for_each(|index| self.found[index] = Some(raw));
        self.here &= !ending;
        if self.here == 0 {
            return Ok(());
        }
        // One pointer is the beginning of another, so this part is read once more.
        self.deserialize(&mut serde_json::Deserializer::from_str(raw.get())).map_err(D::Error::custom)
    }
}

impl<'a> Visitor<'a> for Walk<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(here) = map.next_key_seed(Name(&self))? {
            self.forget(here);
            match here {
                0 => drop(map.next_value::<IgnoredAny>()?),
                _ => map.next_value_seed(Walk { found: self.found, here, depth: self.depth + 1, ..self })?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<(), A::Error> {
        for number in 0_usize.. {
            let here = self.those(|name| name.is_some_and(|name| name == number.to_string()));
            let item = match here {
                0 => items.next_element::<IgnoredAny>()?.map(drop),
                _ => items.next_element_seed(Walk {
                    found: &mut *self.found,
                    here,
                    depth: self.depth + 1,
                    ..self
                })?,
            };
            if item.is_none() {
                break;
            }
        }
        Ok(())
    }

    // A pointer that continues below a value without members finds nothing.
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The name of a member: finds the pointers that continue with it.
struct Name<'w, 'p, 'f, 'a>(&'w Walk<'p, 'f, 'a>);

impl<'de> DeserializeSeed<'de> for Name<'_, '_, '_, '_> {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<u32, D::Error> {
        name.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_, '_, '_, '_> {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<u32, E> {
        Ok(self.0.those(|part| part.is_some_and(|part| means(part, name))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found<const N: usize>(document: &str, pointers: [&str; N]) -> [Option<String>; N] {
        values(document, pointers.map(Some)).map(|value| value.and_then(text))
    }

    fn at(document: &str, pointer: &str) -> Option<String> {
        let [value] = found(document, [pointer]);
        value
    }

    #[test]
    fn a_value_is_the_text_of_a_string_or_compact_json_with_every_digit() {
        let document = r#" {"a" : {"n" : 12345678901234567890123.10, "s" : "x y\"", "l" : [ 1e999 , -0.0 ]} , "s" : "caf\u00e9\n", "no" : null} "#;
        assert_eq!(
            found(document, ["/a", "/s", "/a/n", "/a/l/1", "/no", "/a/l/2", "/a/s/x", "/x"]),
            [
                Some(r#"{"n":12345678901234567890123.10,"s":"x y\"","l":[1e999,-0.0]}"#.into()),
                Some("café\n".into()),
                Some("12345678901234567890123.10".into()),
                Some("-0.0".into()),
                Some("null".into()),
                None,
                None,
                None,
            ]
        );
        assert_eq!(at(r#" "<b>\u003c/b>" "#, "").unwrap(), "<b></b>");
        assert_eq!(at("{\"a\": 1}\n", "").unwrap(), "{\"a\":1}");
    }

    #[test]
    fn names_are_decoded_and_the_last_of_equal_names_counts() {
        let document = r#"{"a/b":1,"m~n":2,"":3,"\u0064":4,"d":5,"0":6,"x":{"y":7},"x":8}"#;
        let pointers = ["/a~1b", "/m~0n", "/", "/d", "/0", "/x/y", "/x"];
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            found(document, pointers),
            [text("1"), text("2"), text("3"), text("5"), text("6"), None, text("8")]
        );
        assert_eq!(found("[[1],[2]]", ["/1/0", "/01", "/-", "/2"]), [text("2"), None, None, None]);
    }

    #[test]
    fn no_value_is_found_in_invalid_json() {
        for bad in
            ["", "{", r#"{"a":1}}"#, r#"{"a":1,}"#, "{a:1}", "\u{feff}{\"a\":1}", r#"{"a":1} x"#, "nul"]
        {
            assert_eq!(at(bad, "/a"), None, "{bad}");
        }
        assert_eq!(at(r#"{"a":1,"b":[1,}"#, "/a"), None, "what follows counts too");
    }

    #[test]
    fn half_a_surrogate_pair_has_no_text_and_does_not_affect_other_values() {
        assert_eq!(at(r#""\ud800""#, ""), None);
        let document = r#"{"bad":"\ud800","good":1,"in":{"a":"\udfff x"},"pair":"\ud83d\ude00"}"#;
        let [bad, good, within, pair] = found(document, ["/bad", "/good", "/in", "/pair"]);
        assert_eq!((bad, good.as_deref(), pair.as_deref()), (None, Some("1"), Some("😀")));
        assert_eq!(within.as_deref(), Some(r#"{"a":"\udfff x"}"#), "as it was written");
    }

    #[test]
    fn a_document_of_any_depth_is_read_without_overflowing_the_stack() {
        let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
        assert_eq!(at(&format!(r#"{{"a":{deep},"b":1}}"#), "/b").as_deref(), Some("1"));
        assert_eq!(at(&format!(r#"{{"a":{deep}}}"#), "/a").unwrap(), deep);
        assert_eq!(at(&deep, "").unwrap(), deep);
        // A very long pointer finds something or nothing, but does not overflow the stack.
        let pointer = "/0".repeat(100_000);
        assert_eq!(at(&deep, &pointer), None);
    }

    proptest! {
        /// Compares with the document as a tree.
        #[test]
        fn values_are_the_same_as_in_a_parsed_tree_of_the_document(
            document in proptest::collection::vec(prop_oneof![
                Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("\"a\""), Just("\"b\""),
                Just("1"), Just("null"), Just("\"a\":"), Just("{\"a\":"), Just(" "), Just("[1,"), Just("\"b\":2"),
            ], 0..16).prop_map(|parts| parts.concat()),
        ) {
            let tree = serde_json::from_str::<serde_json::Value>(&document).ok();
            let pointers = ["", "/a", "/b", "/a/a", "/a/0", "/0", "/1/a", "/a/b"];
            for (pointer, found) in pointers.iter().zip(values(&document, pointers.map(Some))) {
                let found = found.map(|value| serde_json::from_str::<serde_json::Value>(value.get()).unwrap());
                prop_assert_eq!(found.as_ref(), tree.as_ref().and_then(|tree| tree.pointer(pointer)), "{} in {}", pointer, document);
            }
        }

        #[test]
        fn compact_json_means_the_same(document in "[\\[\\]{}:, \\\\\"a1]{0,24}") {
            if let Ok(tree) = serde_json::from_str::<serde_json::Value>(&document) {
                let compact = compact(&document);
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&compact).unwrap(), tree);
            }
        }
    }
}
