// SPDX-License-Identifier: Apache-2.0
//! What a VM was booted with, and whether a container that comes later finds in it what it asks for:
//! a machine does not grow.

use crate::config::{Config, Wanted};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// In MiB; that and the processors without an end if it has all that one may have: a limit beyond
    /// that is no wish.
    memory: u64,
    vcpus: u32,
    /// Ours, that made it so.
    annotations: BTreeMap<String, String>,
}

impl Shape {
    pub fn new(config: &Config, wanted: &Wanted) -> Self {
        let ours = wanted.of_the_machine();
        let (memory, vcpus) = (config.memory, config.vcpus);
        Self {
            memory: if memory < config.most_memory() {
                memory
            } else {
                u64::MAX
            },
            vcpus: if vcpus < config.most_vcpus() {
                vcpus
            } else {
                u32::MAX
            },
            annotations: ours
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    }

    /// Whether a container that comes later has what it asks for.
    ///
    /// # Errors
    /// What it has not, by name.
    pub fn admits(&self, wanted: &Wanted) -> Result<(), String> {
        // One of before had nobody write this down.
        if *self == Self::default() {
            return Ok(());
        }
        let memory = wanted.memory.unwrap_or_default().div_ceil(MIB);
        if memory > self.memory {
            let has = self.memory;
            return Err(format!(
                "memory limit of {memory} MiB: the VM was booted with {has} MiB"
            ));
        }
        let vcpus = wanted.vcpus.unwrap_or_default();
        if vcpus > self.vcpus {
            let has = self.vcpus;
            return Err(format!(
                "cpu quota of {vcpus} processors: the VM was booted with {has}"
            ));
        }
        let differs =
            |(key, value): &(&String, &String)| self.annotations.get(*key) != Some(*value);
        match wanted.of_the_machine().find(differs) {
            Some((key, value)) => Err(format!(
                "annotation {key}={value:?}: the VM runs already, for a container without it"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let annotated = |key: &str, value: &str| Wanted {
            annotations: [(key.to_owned(), value.to_owned())].into(),
            ..Wanted::default()
        };
        let first = annotated("io.dunnage.vm.vcpus", "2");
        let mut config = Config {
            max_memory: 1024,
            max_vcpus: 4,
            vcpus: 2,
            ..Config::default()
        };
        let shape = Shape::new(&config, &first);
        let refused = |wanted: &Wanted| shape.admits(wanted).unwrap_err();
        assert_eq!(
            shape.admits(&first),
            Ok(()),
            "a pod's are on all of its containers"
        );
        assert_eq!(shape.admits(&annotated("other", "x")), Ok(()));
        for (key, value) in [("vcpus", "1"), ("memory", "256")] {
            let key = format!("io.dunnage.vm.{key}");
            let why = refused(&annotated(&key, value));
            assert!(
                why.starts_with(&format!("annotation {key}=\"{value}\": ")),
                "{why}"
            );
        }
        let of = |memory, vcpus| Wanted {
            memory: Some(memory),
            vcpus: Some(vcpus),
            ..Wanted::default()
        };
        assert_eq!(shape.admits(&of(512 << 20, 2)), Ok(()));
        let why = "memory limit of 513 MiB: the VM was booted with 512 MiB";
        assert_eq!(refused(&of((512 << 20) + 1, 1)), why);
        let why = "cpu quota of 3 processors: the VM was booted with 2";
        assert_eq!(refused(&of(0, 3)), why);
        assert_eq!(Shape::default().admits(&of(1 << 40, 9)), Ok(()));
        (config.memory, config.vcpus) = (1024, 4);
        assert_eq!(Shape::new(&config, &first).admits(&of(1 << 40, 9)), Ok(()));
    }
}
