// SPDX-License-Identifier: Apache-2.0
//! What Kubernetes' API takes, as tests/kubernetes has it: whether an object is that, and where not.

use harness::peers;
use serde_json::{Map, Value};
use std::fs;
use yaml_rust2::Yaml;

/// The oldest that the chart is for, and the newest that was looked at.
pub const RELEASES: [&str; 2] = ["1.30", "1.37"];

pub struct Api {
    definitions: Map<String, Value>,
}

impl Api {
    pub fn of(release: &str) -> Self {
        let path = peers::workspace().join(format!("tests/kubernetes/{release}.json"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let definitions = serde_json::from_str(&text).expect("definitions");
        Self { definitions }
    }

    /// Why `object` is none of `kind`, such as `io.k8s.api.node.v1.RuntimeClass`; empty if it is.
    pub fn complaints(&self, kind: &str, object: &Yaml) -> Vec<String> {
        let mut found = Vec::new();
        self.check("", &self.definitions[kind], &json(object), &mut found);
        found
    }

    fn check(&self, at: &str, schema: &Value, value: &Value, found: &mut Vec<String>) {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().expect("a name");
            return self.check(at, &self.definitions[name], value, found);
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let fits = |choice: &Value| {
                let mut found = Vec::new();
                self.check(at, choice, value, &mut found);
                found.is_empty()
            };
            if !choices.iter().any(fits) {
                found.push(format!("{at}: {value} is none of what it can be"));
            }
            return;
        }
        if let Some(kinds) = schema.get("type") {
            let is = |kind: &Value| kind == kind_of(value) || (kind == "number" && value.is_i64());
            let fits = kinds
                .as_array()
                .map_or_else(|| is(kinds), |it| it.iter().any(is));
            if !fits {
                return found.push(format!("{at}: {value} is not of type {kinds}"));
            }
        }
        let choices = schema["enum"].as_array();
        if choices.is_some_and(|it| !it.contains(value)) {
            found.push(format!("{at}: {value} is none of {}", schema["enum"]));
        }
        for item in value.as_array().into_iter().flatten() {
            self.check(&format!("{at}[]"), &schema["items"], item, found);
        }
        if let Some(object) = value.as_object() {
            self.check_object(at, schema, object, found);
        }
    }

    fn check_object(
        &self,
        at: &str,
        schema: &Value,
        object: &Map<String, Value>,
        found: &mut Vec<String>,
    ) {
        let required = schema["required"].as_array().into_iter().flatten();
        for name in required.filter_map(Value::as_str) {
            if !object.contains_key(name) {
                found.push(format!("{at}: no {name}"));
            }
        }
        for (name, value) in object {
            let more = &schema["additionalProperties"];
            match (schema["properties"].get(name), more) {
                (Some(schema), _) => self.check(&format!("{at}.{name}"), schema, value, found),
                (None, Value::Bool(false)) => found.push(format!("{at}: there is no field {name}")),
                (None, more) => self.check(&format!("{at}.{name}"), more, value, found),
            }
        }
    }
}

/// As JSON Schema calls it.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Boolean(it) => (*it).into(),
        Yaml::Integer(it) => (*it).into(),
        Yaml::String(it) => it.clone().into(),
        Yaml::Array(items) => items.iter().map(json).collect(),
        Yaml::Hash(hash) => {
            let pair = |(name, value): (&Yaml, &Yaml)| {
                (name.as_str().expect("a name").to_owned(), json(value))
            };
            Value::Object(hash.iter().map(pair).collect())
        }
        Yaml::Null => Value::Null,
        other => panic!("{other:?} has no place in an object"),
    }
}
