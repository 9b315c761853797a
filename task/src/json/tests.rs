// SPDX-License-Identifier: Apache-2.0
//! What Go's encoding/json takes, and what it makes of it.

use super::*;
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Part {
    text: String,
    number: u32,
    big: i64,
    switch: bool,
    list: Vec<String>,
    map: HashMap<String, String>,
    inner: Option<Box<Part>>,
    #[serde(alias = "OtherName")]
    other_name: String,
    ratio: f64,
    pair: (i64, i32),
}

fn part(json: &str) -> Part {
    read(json.as_bytes()).unwrap()
}

fn refused(json: &str) -> String {
    read::<Part>(json.as_bytes()).unwrap_err().to_string()
}

#[test]
fn null_is_as_good_as_nothing() {
    let nulls = r#"{"text":null,"number":null,"big":null,"switch":null,"list":null,"map":null,
        "inner":null,"other_name":null,"ratio":null,"pair":null}"#;
    for nothing in [
        "{}",
        "null",
        &nulls.replace(r#""pair":null"#, r#""pair":[null,null]"#),
    ] {
        assert_eq!(part(nothing), Part::default(), "{nothing}");
    }
    let some = part(r#"{"list":["a",null],"map":{"k":null},"inner":{"text":null}}"#);
    assert_eq!(some.list, ["a", ""]);
    assert_eq!(some.map["k"], "");
    assert_eq!(some.inner, Some(Box::default()));
    let value: Value = read(br#"{"a":null,"b":[null,{"c":null}]}"#).unwrap();
    assert_eq!(value, json!({"b": [null, {}]}));
}

#[test]
fn what_is_said_twice_is_said_last_and_objects_are_one() {
    let twice = part(
        r#"{"text":"a","text":"b","list":["a","b"],"list":["c"],"map":{"a":"1","b":"2"},
            "map":{"b":"3"},"inner":{"text":"x","number":1},"inner":{"number":2}}"#,
    );
    assert_eq!(
        (twice.text.as_str(), &twice.list[..]),
        ("b", &["c".to_owned()][..])
    );
    let map = [("a", "1"), ("b", "3")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(twice.map, HashMap::from(map));
    let inner = twice.inner.unwrap();
    assert_eq!((inner.text.as_str(), inner.number), ("x", 2));
    assert_eq!(part(r#"{"inner":{"text":"x"},"inner":null}"#).inner, None);
    let after = part(r#"{"inner":{"text":"x"},"inner":null,"inner":{"number":1}}"#).inner;
    assert_eq!(after.map(|part| part.text).as_deref(), Some(""));
    let value: Value = read(br#"{"a":{"b":1,"c":1},"a":{"c":2}}"#).unwrap();
    assert_eq!(value, json!({"a": {"b": 1, "c": 2}}));
    // A map's values are not joined.
    let maps: HashMap<String, Part> = read(br#"{"a":{"text":"x"},"a":{"number":1}}"#).unwrap();
    assert_eq!((maps["a"].text.as_str(), maps["a"].number), ("", 1));
}

#[test]
fn the_case_of_a_field_does_not_matter_and_that_of_a_key_does() {
    let odd = part(r#"{"TEXT":"a","Map":{"K":"1","k":"2"},"otherNAME":"x"}"#);
    assert_eq!((odd.text.as_str(), odd.map.len()), ("a", 2));
    assert_eq!(odd.other_name, "x");
    assert_eq!(part(r#"{"OtherName":"y"}"#).other_name, "y");
    assert_eq!(part(r#"{"text":"a","Text":"b"}"#).text, "b");
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    let text = |json: &[u8]| read::<Part>(json).unwrap().text;
    assert_eq!(
        text(b"{\"text\":\"a\xff\xe2\x82b\"}"),
        "a\u{fffd}\u{fffd}\u{fffd}b"
    );
    assert_eq!(
        text(br#"{"text":"\ud800x\udc00\ud83d\ude00\ud800\u0041"}"#),
        "\u{fffd}x\u{fffd}\u{1f600}\u{fffd}A"
    );
    assert_eq!(
        text(br#"{"te\u0078t":"\"\\\/\b\f\n\r\t\u00e9"}"#),
        "\"\\/\u{8}\u{c}\n\r\t\u{e9}"
    );
    assert_eq!(text(b"{\"\xff\":1,\"text\":\"x\"}"), "x");
    // Below a blank there is no character, in Go neither.
    assert!(refused("{\"text\":\"a\nb\"}").contains("at byte 10"));
}

#[test]
fn what_nobody_asks_for_is_passed_over() {
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let strange = format!(
        r#"{{"x":1e999,"y":123456789012345678901234567890,"z":"\ud800","deep":{},"long":"{}",
            "text":"found"}}"#,
        deep(9_999),
        "x".repeat(5 << 20)
    );
    assert_eq!(part(&strange).text, "found");
    let over = format!(r#"{{"x":{}}}"#, deep(100_000));
    assert_eq!(refused(&over), "nested deeper than 10000 levels");
    // A value that is kept takes a stack to make.
    assert!(read::<Value>(deep(128).as_bytes()).is_ok());
    let deeper = read::<Value>(deep(5_000).as_bytes()).unwrap_err();
    assert!(
        deeper
            .to_string()
            .ends_with("nested deeper than 128 levels"),
        "{deeper}"
    );
    let inner = "{\"inner\":".repeat(5_000) + "1" + &"}".repeat(5_000);
    assert!(refused(&inner).ends_with("nested deeper than 128 levels"));
}

#[test]
fn numbers_are_what_go_takes_for_them() {
    let numbers = part(r#"{"number":4294967295,"big":-9223372036854775808,"ratio":1e2}"#);
    assert_eq!(
        (numbers.number, numbers.big, numbers.ratio),
        (u32::MAX, i64::MIN, 100.0)
    );
    for bad in [
        "1.0",
        "1e2",
        "-1",
        "4294967296",
        "1e999",
        "123456789012345678901",
        "\"1\"",
        "[]",
    ] {
        let why = refused(&format!("{{\"number\":{bad}}}"));
        assert!(why.starts_with("number: "), "{bad}: {why}");
    }
    let value: Value = read(b"[18446744073709551615,-1,1.5,1e999]").unwrap();
    assert_eq!(value, json!([u64::MAX, -1, 1.5, f64::MAX]));
}

#[test]
fn what_is_wrong_is_named() {
    assert!(refused(r#"{"inner":{"list":["a",5]}}"#).starts_with("inner.list.1: invalid type"));
    assert!(refused(r#"{"map":[]}"#).starts_with("map: invalid type: sequence"));
    assert!(refused("[]").starts_with("invalid type: sequence"));
    for bad in [
        "",
        " ",
        "{",
        "[1,]",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{a:1}",
        "01",
        "-",
        "1.",
        "1e",
        "nul",
        "\"a",
        "\"\\x\"",
        "\"\\u12g4\"",
        "{}x",
        "[1 2]",
        "+1",
        "'a'",
        "{\"a\"}",
        "[}",
        "\u{feff}{}",
    ] {
        assert!(read::<Value>(bad.as_bytes()).is_err(), "{bad}");
        assert!(serde_json::from_str::<Value>(bad).is_err(), "{bad}");
    }
    assert_eq!(read_first::<Value>(b" {\"a\":1} x"), Ok(json!({"a": 1})));
    let lenient = read::<Lenient>(br#"{"part":[],"text":"x"}"#).unwrap();
    assert_eq!((lenient.part, lenient.text.as_str()), (None, "x"));
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lenient {
    #[serde(deserialize_with = "lenient")]
    part: Option<Part>,
    text: String,
}
