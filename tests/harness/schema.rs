// SPDX-License-Identifier: Apache-2.0
//! The daemon's services as their .proto files have them, and examples of what is asked of them: so no
//! method can be forgotten.

use crate::peers;
use protos::Message;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Where the files of services, and of what they share, are.
const DIRS: [&str; 4] = ["services", "types", "dunnage/v1", "grpc"];
/// How deep messages are in one another.
const DEPTH: usize = 4;

const IDS: [&str; 6] = ["c", "e", "", "no-such", "../c", "\u{202e}ü\0"];
const TEXTS: [&str; 8] = [
    "",
    "x",
    "/tasks/exit",
    "topic==\"/tasks/exit\"",
    "io.containerd.runc.v2",
    "labels.\"a",
    "types.containerd.io/opencontainers/runtime-spec/1/Process",
    "containerd.events.TaskExit",
];
const BYTES: [&[u8]; 5] = [
    b"",
    b"{}",
    br#"{"args":["true"],"cwd":"/","user":{"uid":0,"gid":0}}"#,
    b"\x0a\x01c\x12\x01c\x18\x07\x20\x03",
    &[0xff; 100],
];
const NUMBERS: [u64; 6] = [1, 0, 15, 1 << 31, u64::MAX, 9];

/// A method, and what it is asked.
pub struct Method {
    /// `package.Service/Method`.
    pub path: String,
    pub streams: bool,
    request: String,
}

struct Field {
    name: String,
    number: u64,
    kind: String,
}

#[derive(Default)]
pub struct Schema {
    pub methods: Vec<Method>,
    /// By package and name.
    messages: BTreeMap<String, Vec<Field>>,
}

impl Schema {
    /// Of all services that clients of the daemon have.
    pub fn read() -> Self {
        let mut schema = Self::default();
        let mut dirs = DIRS.map(|dir| peers::workspace().join("protos/proto").join(dir));
        let mut files: Vec<PathBuf> = Vec::new();
        let mut open = Vec::from_iter(dirs.iter_mut().map(std::mem::take));
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).expect("protos") {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    // Shims call that one, over ttrpc.
                    true if path.ends_with("services/ttrpc") => {}
                    true => open.push(path),
                    false => files.push(path),
                }
            }
        }
        files.sort();
        for file in files {
            schema.add(&fs::read_to_string(file).expect("a .proto"));
        }
        schema
    }

    fn add(&mut self, text: &str) {
        let lines = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        let text: String = lines.flat_map(|line| [line, " "]).collect();
        let mut package = String::new();
        // What the statement is in, the innermost last.
        let mut blocks: Vec<(String, String)> = Vec::new();
        for statement in text.split_inclusive([';', '{', '}']) {
            let (words, end) = statement.split_at(statement.len() - 1);
            let words = words.replace(['(', ')', ','], " ");
            let words: Vec<&str> = words.split_whitespace().collect();
            match (end, &words[..], blocks.last()) {
                ("{", [kind, name, ..], _) => blocks.push(((*kind).into(), (*name).into())),
                ("{", _, _) => blocks.push(Default::default()),
                (";", ["package", name], None) => package = (*name).into(),
                (";", ["rpc", name, request, "returns", answer @ ..], Some((_, service))) => {
                    self.methods.push(Method {
                        path: format!("{package}.{service}/{name}"),
                        streams: answer.first() == Some(&"stream"),
                        request: self.named(&package, request),
                    });
                }
                (";", [kind @ .., name, "=", number], Some((block, _))) if block != "enum" => {
                    let mut messages = blocks.iter().rev();
                    let message = messages.find(|(block, _)| block == "message");
                    if let (Some((_, message)), Ok(number)) = (message, number.parse()) {
                        let kind = match kind {
                            ["map<string", ..] => "map".into(),
                            [.., kind] => self.named(&package, kind),
                            [] => continue,
                        };
                        let fields = self.messages.entry(format!("{package}.{message}"));
                        fields.or_default().push(Field {
                            name: (*name).into(),
                            number,
                            kind,
                        });
                    }
                }
                ("}", ..) => drop(blocks.pop()),
                _ => {}
            }
        }
    }

    /// With its package, if it is a name of this one.
    fn named(&self, package: &str, kind: &str) -> String {
        match kind.contains("containerd.") || kind.contains("google.") {
            true => kind.to_owned(),
            false => format!("{package}.{}", kind.rsplit('.').next().unwrap_or_default()),
        }
    }

    /// What a method may be asked: `n` says which of the values each field has.
    pub fn example(&self, method: &Method, n: usize) -> Vec<u8> {
        self.message(&method.request, n, 0)
    }

    fn message(&self, kind: &str, n: usize, depth: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        if depth > DEPTH {
            return bytes;
        }
        for Field { name, number, kind } in self.messages.get(kind).into_iter().flatten() {
            let n = n + *number as usize * usize::from(n > 0);
            let any = || protos::Any {
                type_url: TEXTS[n % TEXTS.len()].into(),
                value: BYTES[n % BYTES.len()].into(),
            };
            let is_id = name.ends_with("id");
            let last = kind.rsplit('.').next().unwrap_or_default();
            let field = match last {
                "string" if is_id => IDS[n % IDS.len()].into(),
                "string" => TEXTS[n % TEXTS.len()].into(),
                "bytes" => BYTES[n % BYTES.len()].into(),
                "map" => [&b"\x0a\x01a\x12\x01"[..], b"b"].concat(),
                "Any" => any().encode_to_vec(),
                "FieldMask" => b"\x0a\x06labels\x0a\x04spec".into(),
                "Timestamp" => [&[0x08][..], &varint(NUMBERS[n % NUMBERS.len()])].concat(),
                _ if self.messages.contains_key(kind) => self.message(kind, n, depth + 1),
                _ => {
                    bytes.extend(varint(number << 3));
                    bytes.extend(varint(NUMBERS[n % NUMBERS.len()]));
                    continue;
                }
            };
            bytes.extend(varint(number << 3 | 2));
            bytes.extend(varint(field.len() as u64));
            bytes.extend(field);
        }
        bytes
    }
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}
