// SPDX-License-Identifier: Apache-2.0
//! The known differences: between our shim and containerd's, `tests/ledger.txt`, between the OCI
//! runtimes below it, `tests/runtimes.txt`, and between the host and a VM, `tests/vms.txt`.

use crate::peers;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// One line: `id | ours | theirs | why`, `id | runc | crun | why`, or `id | host | VM | why`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: String,
    pub ours: String,
    pub theirs: String,
    pub why: String,
}

/// The whole ledger of the shims, in its order.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> =
        LazyLock::new(|| parse(include_str!("../ledger.txt")).expect("tests/ledger.txt"));
    &ENTRIES
}

/// The whole ledger of the runtimes, in its order.
pub fn runtimes() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> =
        LazyLock::new(|| parse(include_str!("../runtimes.txt")).expect("tests/runtimes.txt"));
    &ENTRIES
}

/// The whole ledger of VMs, in its order.
pub fn vms() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> =
        LazyLock::new(|| parse(include_str!("../vms.txt")).expect("tests/vms.txt"));
    &ENTRIES
}

fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    let mut ids = BTreeSet::new();
    for line in text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let fields: Vec<&str> = line.split(" | ").map(str::trim).collect();
        let [id, ours, theirs, why] = fields[..] else {
            return Err(format!("not `id | ours | theirs | why`: {line}"));
        };
        if [id, ours, theirs, why].contains(&"") {
            return Err(format!("an empty field: {line}"));
        }
        if !ids.insert(id) {
            return Err(format!("twice: {id}"));
        }
        let [id, ours, theirs, why] = [id, ours, theirs, why].map(str::to_owned);
        entries.push(Entry {
            id,
            ours,
            theirs,
            why,
        });
    }
    Ok(entries)
}

/// True if the shim under test is containerd's, so that the ledger's line `id` applies.
///
/// # Panics
/// If the ledger has no such line.
pub fn differs(id: &str) -> bool {
    applies(entries(), id, peers::is_go())
}

/// True if the runtime under test is crun, so that the line `id` of the runtimes applies.
///
/// # Panics
/// If there is no such line.
pub fn runtime_differs(id: &str) -> bool {
    applies(runtimes(), id, peers::runtime_name() == "crun")
}

/// True if the shim under test is that of VMs, so that the line `id` of the VMs applies.
///
/// # Panics
/// If there is no such line.
pub fn vm_differs(id: &str) -> bool {
    applies(vms(), id, peers::is_vm())
}

fn applies(ledger: &[Entry], id: &str, theirs: bool) -> bool {
    let Some(entry) = ledger.iter().find(|entry| entry.id == id) else {
        panic!("`{id}` is in no line of the ledger");
    };
    if theirs {
        println!("ledger: {id}: {}", entry.theirs);
    }
    theirs
}
