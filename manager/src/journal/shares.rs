// SPDX-License-Identifier: Apache-2.0
//! Whose records a journal that is over its limits lets go: those of the namespaces that have most
//! of it, so that none pushes out another's.

use super::{Limits, Record};
use std::collections::{BTreeMap, HashMap};

/// How much there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    records: u64,
    bytes: u64,
}

/// What one segment has of one namespace's.
#[derive(Default)]
struct Holding {
    amount: Amount,
    /// When it was last looked at, all of it was still needed.
    needed: bool,
}

/// How much of the journal is whose, by the first number of the segment.
#[derive(Default)]
pub struct Shares(BTreeMap<u64, HashMap<String, Holding>>);

/// What each namespace has, and how much of each kind it may keep.
pub struct Verdicts {
    used: HashMap<String, Amount>,
    most: Amount,
}

/// The namespace that a record is of.
pub fn namespace(record: &Record) -> &str {
    let of = [
        record.envelope.as_ref().map(|it| it.namespace.as_str()),
        record.started.as_ref().map(|it| it.namespace.as_str()),
        record.exec_deleted.as_ref().map(|it| it.namespace.as_str()),
    ];
    of.into_iter().flatten().next().unwrap_or_default()
}

impl Shares {
    /// A segment has got a record of so many bytes.
    pub fn add(&mut self, segment: u64, record: &Record, bytes: usize) {
        let of = self.0.entry(segment).or_default();
        let namespace = namespace(record);
        let holding = match of.get_mut(namespace) {
            Some(holding) => holding,
            None => of.entry(namespace.to_owned()).or_default(),
        };
        holding.amount.records += 1;
        holding.amount.bytes += bytes as u64;
        holding.needed = false;
    }

    /// A segment is gone, or about to be told of anew.
    pub fn forget(&mut self, segment: u64) {
        self.0.remove(&segment);
    }

    /// A segment was rewritten: what is left of the namespaces that `goes` names is needed.
    pub fn settle(&mut self, segment: u64, goes: impl Fn(&str) -> bool) {
        for (namespace, holding) in self.0.get_mut(&segment).into_iter().flatten() {
            holding.needed |= goes(namespace);
        }
    }

    /// True if the segment may have records of the namespaces that `goes` names which nobody needs.
    pub fn may_lose(&self, segment: u64, goes: impl Fn(&str) -> bool) -> bool {
        self.0.get(&segment).is_none_or(|of| {
            let mut of = of.iter().filter(|(_, holding)| !holding.needed);
            of.any(|(namespace, _)| goes(namespace))
        })
    }

    /// Judges by what there is now.
    pub fn judge(&self, limits: &Limits) -> Verdicts {
        let mut used = HashMap::<String, Amount>::new();
        for (namespace, holding) in self.0.values().flatten() {
            let amount = used.entry(namespace.clone()).or_default();
            amount.records += holding.amount.records;
            amount.bytes += holding.amount.bytes;
        }
        let most = Amount {
            records: level(used.values().map(|it| it.records).collect(), limits.records),
            bytes: level(used.values().map(|it| it.bytes).collect(), limits.bytes),
        };
        Verdicts { used, most }
    }
}

impl Verdicts {
    pub fn is_over(&self, namespace: &str) -> bool {
        self.used
            .get(namespace)
            .is_some_and(|used| used.records > self.most.records || used.bytes > self.most.bytes)
    }

    /// A record of so many bytes is gone.
    pub fn dropped(&mut self, namespace: &str, bytes: usize) {
        if let Some(used) = self.used.get_mut(namespace) {
            used.records = used.records.saturating_sub(1);
            used.bytes = used.bytes.saturating_sub(bytes as u64);
        }
    }
}

/// How much each may keep at most so that all together are within `limit`: who has less than an
/// equal share leaves the rest of it to the others.
fn level(mut amounts: Vec<u64>, limit: u64) -> u64 {
    amounts.sort_unstable();
    let (mut left, mut sharers) = (limit, amounts.len() as u64);
    for amount in amounts {
        if amount > left / sharers {
            return left / sharers;
        }
        left -= amount;
        sharers -= 1;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::level;

    #[test]
    fn who_has_little_keeps_it() {
        for (amounts, limit, most) in [
            (vec![], 10, u64::MAX),
            (vec![10], 10, u64::MAX),
            (vec![11], 10, 10),
            (vec![1, 100], 10, 9),
            (vec![100, 1, 100, 2], 13, 5),
            (vec![5, 5, 5], 15, u64::MAX),
        ] {
            assert_eq!(level(amounts.clone(), limit), most, "{amounts:?}");
        }
    }
}
