// SPDX-License-Identifier: Apache-2.0
//! Spans as OpenTelemetry has them: read out of a shim's file, strictly by OTLP's JSON, and received
//! from who sends them as containerd does, by HTTP in protobuf.

use crate::containerd;
use prost::Message;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What a test asks of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty for the first of a trace.
    pub parent: String,
    pub name: String,
    /// 1 internal, 2 server, 3 client.
    pub kind: i64,
    pub begin: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    pub failed: Option<String>,
    /// Of the process: `service.name`.
    pub service: String,
}

/// The spans of lines of JSON; panics at what OTLP's JSON does not have
/// (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).
pub fn read(lines: &str) -> Vec<Span> {
    lines.lines().flat_map(spans).collect()
}

/// The one of this name.
pub fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let one = found
        .next()
        .unwrap_or_else(|| panic!("no {name}: {spans:#?}"));
    assert_eq!(found.next(), None, "a second {name}");
    one
}

fn spans(line: &str) -> Vec<Span> {
    let data: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let mut all = Vec::new();
    for of_resource in list(object(&data, &["resourceSpans"]), "resourceSpans") {
        let of_resource = object(of_resource, &["resource", "scopeSpans"]);
        let resource = object(&of_resource["resource"], &["attributes"]);
        let resource = attributes(resource);
        let service = resource["service.name"].clone();
        for of_scope in list(of_resource, "scopeSpans") {
            let of_scope = object(of_scope, &["scope", "spans"]);
            object(&of_scope["scope"], &["name", "version"]);
            let spans = list(of_scope, "spans").iter();
            all.extend(spans.map(|one| span(one, &service)));
        }
    }
    all
}

fn span(value: &Value, service: &str) -> Span {
    let span = object(
        value,
        &[
            "traceId",
            "spanId",
            "parentSpanId",
            "traceState",
            "flags",
            "name",
            "kind",
            "startTimeUnixNano",
            "endTimeUnixNano",
            "attributes",
            "status",
        ],
    );
    let hex = |key: &str, length: usize| {
        let text = span.get(key).map_or("", |value| text(value));
        let is_hex = text.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(is_hex && [0, length].contains(&text.len()), "{key}: {text}");
        text.to_owned()
    };
    let time = |key: &str| text(&span[key]).parse::<u64>().expect(key);
    let status = object(&span["status"], &["code", "message"]);
    let found = Span {
        trace: hex("traceId", 32),
        id: hex("spanId", 16),
        parent: hex("parentSpanId", 16),
        name: text(&span["name"]).to_owned(),
        kind: span["kind"].as_i64().expect("a number"),
        begin: time("startTimeUnixNano"),
        end: time("endTimeUnixNano"),
        attributes: attributes(span),
        failed: status
            .get("code")
            .filter(|code| code.as_u64() == Some(2))
            .map(|_| text(&status["message"]).to_owned()),
        service: service.to_owned(),
    };
    assert!(!found.trace.is_empty() && !found.id.is_empty(), "{value}");
    assert!(found.begin <= found.end && found.begin > 1 << 60, "{value}");
    assert!((1..=5).contains(&found.kind), "{value}");
    found
}

fn object<'a>(value: &'a Value, keys: &[&str]) -> &'a Map<String, Value> {
    let object = value.as_object().unwrap_or_else(|| panic!("{value}"));
    let unknown = object.keys().find(|key| !keys.contains(&key.as_str()));
    assert_eq!(unknown, None, "{value}");
    object
}

fn list<'a>(object: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    object[key].as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("text: {value}"))
}

fn attributes(object: &Map<String, Value>) -> BTreeMap<String, String> {
    let pair = |pair: &Value| {
        let pair = self::object(pair, &["key", "value"]);
        let value = self::object(&pair["value"], &["stringValue", "boolValue", "intValue"]);
        let (kind, value) = value.iter().next().expect("a value");
        let value = match kind.as_str() {
            "boolValue" => value.as_bool().expect("a boolean").to_string(),
            _ => text(value).to_owned(),
        };
        (text(&pair["key"]).to_owned(), value)
    };
    list(object, "attributes").iter().map(pair).collect()
}

/// Whoever sends spans here, they are kept.
pub struct Receiver {
    pub endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Default for Receiver {
    fn default() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        // It ends with the test binary.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                thread::spawn(move || receive(stream, &kept));
            }
        });
        Self {
            endpoint: format!("http://{address}"),
            spans,
        }
    }
}

impl Receiver {
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("the spans").clone()
    }

    /// Waits until it has what `select` wants.
    pub fn wait_for<T>(&self, what: &str, select: impl Fn(&[Span]) -> Option<T>) -> T {
        crate::wait::until_within(containerd::DEADLINE, what, || {
            let spans = self.spans();
            select(&spans).ok_or_else(|| format!("{spans:#?}"))
        })
    }
}

/// One connection: requests, one after the other.
fn receive(stream: TcpStream, kept: &Mutex<Vec<Span>>) -> Option<()> {
    let mut answers = stream.try_clone().ok()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim().to_lowercase();
            if let Some(said) = line.strip_prefix("content-length:") {
                length = said.trim().parse().ok()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let data = wire::Data::decode(body.as_slice()).ok()?;
        kept.lock().ok()?.extend(data.spans());
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n";
        answers
            .write_all(format!("{head}Content-Length: 0\r\n\r\n").as_bytes())
            .ok()?;
    }
}

/// What is asked of opentelemetry/proto/trace/v1/trace.proto.
mod wire {
    use super::Span;
    use std::collections::BTreeMap;
    use std::fmt::Write;

    #[derive(prost::Message)]
    pub struct Data {
        #[prost(message, repeated, tag = "1")]
        of_resources: Vec<OfResource>,
    }

    #[derive(prost::Message)]
    struct OfResource {
        #[prost(message, optional, tag = "1")]
        resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        of_scopes: Vec<OfScope>,
    }

    #[derive(prost::Message)]
    struct Resource {
        #[prost(message, repeated, tag = "1")]
        attributes: Vec<Pair>,
    }

    #[derive(prost::Message)]
    struct OfScope {
        #[prost(message, repeated, tag = "2")]
        spans: Vec<One>,
    }

    #[derive(prost::Message)]
    struct One {
        #[prost(bytes = "vec", tag = "1")]
        trace: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        id: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")]
        parent: Vec<u8>,
        #[prost(string, tag = "5")]
        name: String,
        #[prost(int32, tag = "6")]
        kind: i32,
        #[prost(fixed64, tag = "7")]
        begin: u64,
        #[prost(fixed64, tag = "8")]
        end: u64,
        #[prost(message, repeated, tag = "9")]
        attributes: Vec<Pair>,
    }

    #[derive(prost::Message)]
    struct Pair {
        #[prost(string, tag = "1")]
        key: String,
        #[prost(message, optional, tag = "2")]
        value: Option<AnyValue>,
    }

    #[derive(prost::Message)]
    struct AnyValue {
        #[prost(string, tag = "1")]
        text: String,
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    fn attributes(pairs: Vec<Pair>) -> BTreeMap<String, String> {
        let pair = |pair: Pair| (pair.key, pair.value.unwrap_or_default().text);
        pairs.into_iter().map(pair).collect()
    }

    impl Data {
        pub fn spans(self) -> Vec<Span> {
            let mut all = Vec::new();
            for of_resource in self.of_resources {
                let resource = of_resource.resource.unwrap_or_default();
                let mut resource = attributes(resource.attributes);
                let service = resource.remove("service.name").unwrap_or_default();
                let spans = of_resource.of_scopes.into_iter().flat_map(|it| it.spans);
                all.extend(spans.map(|one| Span {
                    trace: hex(&one.trace),
                    id: hex(&one.id),
                    parent: hex(&one.parent),
                    name: one.name,
                    kind: one.kind.into(),
                    begin: one.begin,
                    end: one.end,
                    attributes: attributes(one.attributes),
                    failed: None,
                    service: service.clone(),
                }));
            }
            all
        }
    }
}
