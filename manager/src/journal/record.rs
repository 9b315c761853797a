// SPDX-License-Identifier: Apache-2.0
//! What a record of the journal tells, as it is on disk.

use crate::names::Key;
use prost::Message;
use protos::types::Envelope;
use task::ProcessId;

/// One entry.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    #[prost(message, optional, tag = "1")]
    pub envelope: Option<Envelope>,
    /// Where the knowledge came from: an `Origin`'s name.
    #[prost(string, tag = "2")]
    pub origin: String,
    #[prost(message, optional, tag = "3")]
    pub started: Option<Started>,
    #[prost(message, optional, tag = "4")]
    pub exec_deleted: Option<ExecDeleted>,
}

/// Start of this process is about to be answered with OK.
#[derive(Clone, PartialEq, Message)]
pub struct Started {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    container: String,
    /// Empty for init.
    #[prost(string, tag = "3")]
    exec: String,
    #[prost(uint32, tag = "4")]
    pub pid: u32,
    /// Clock ticks after boot, as in /proc/PID/stat: tells two owners of one pid apart.
    #[prost(uint64, tag = "5")]
    pub start_time: u64,
}

/// An exec is gone for good, its exit too; no event tells of that.
#[derive(Clone, PartialEq, Message)]
pub struct ExecDeleted {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    container: String,
    #[prost(string, tag = "3")]
    exec: String,
}

impl Started {
    pub fn new(key: &Key, process: &ProcessId, pid: u32) -> Self {
        Self {
            namespace: key.namespace.clone(),
            container: key.id.clone(),
            exec: process.exec_id().to_owned(),
            pid,
            start_time: task::proc::started(pid).unwrap_or(0),
        }
    }

    pub fn key(&self) -> Key {
        Key::new(&self.namespace, &self.container)
    }

    pub fn process(&self) -> ProcessId {
        ProcessId::in_request(&self.exec)
    }
}

impl ExecDeleted {
    pub fn new(key: &Key, exec: &ProcessId) -> Self {
        Self {
            namespace: key.namespace.clone(),
            container: key.id.clone(),
            exec: exec.exec_id().to_owned(),
        }
    }

    pub fn key(&self) -> Key {
        Key::new(&self.namespace, &self.container)
    }

    pub fn process(&self) -> ProcessId {
        ProcessId::in_request(&self.exec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These bytes are in journals.
    #[test]
    fn records_name_processes_as_they_always_did() {
        let key = Key::new("n", "c");
        for (bytes, process) in [
            (&b"\x1a\x08\x0a\x01n\x12\x01c\x20\x05"[..], ProcessId::Init),
            (
                b"\x1a\x0b\x0a\x01n\x12\x01c\x1a\x01e\x20\x05",
                ProcessId::Exec("e".into()),
            ),
        ] {
            let record = Record::decode(bytes).unwrap();
            assert_eq!(record.encode_to_vec(), bytes);
            let started = record.started.unwrap();
            assert_eq!((started.key(), started.process()), (key.clone(), process));
            assert_eq!(started.pid, 5);
        }
        let bytes = &b"\x22\x09\x0a\x01n\x12\x01c\x1a\x01e"[..];
        let gone = ExecDeleted::new(&key, &ProcessId::Exec("e".into()));
        let record = Record {
            exec_deleted: Some(gone),
            ..Default::default()
        };
        assert_eq!(record.encode_to_vec(), bytes);
    }
}
