//! The known differences between our shim and containerd's, `tests/ledger.txt`.

use crate::peers;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// One line of the ledger: `id | ours | theirs | why`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: String,
    pub ours: String,
    pub theirs: String,
    pub why: String,
}

/// The whole ledger, in its order.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> =
        LazyLock::new(|| parse(include_str!("../ledger.txt")).expect("tests/ledger.txt"));
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
    let Some(entry) = entries().iter().find(|entry| entry.id == id) else {
        panic!("`{id}` is not in tests/ledger.txt");
    };
    let go = peers::is_go();
    if go {
        println!("ledger: {id}: {}", entry.theirs);
    }
    go
}
