// SPDX-License-Identifier: Apache-2.0
//! What the operator has set of the pool: section `[pool]` of shim-vm.toml.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// VMs in store at most: each has processes, and memory.
const MOST: u32 = 1024;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// VMs in store of the memory and the processors that a container without limits has; 0: none.
    pub size: u32,
    /// MiB that all VMs in store may have together, with what each needs beside; 0: no such limit.
    pub memory: u64,
    /// VMs of other shapes in store.
    pub shapes: Vec<Shape>,
    /// Where they are, on the filesystem of /run/dunnage.
    pub directory: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            size: 0,
            memory: 0,
            shapes: Vec::new(),
            directory: "/run/dunnage/pool".into(),
        }
    }
}

/// VMs of one shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    pub size: u32,
    /// MiB.
    pub memory: u64,
    pub vcpus: u32,
}

impl Settings {
    /// Whether there may be a pool.
    pub fn is_on(&self) -> bool {
        self.size > 0 || self.shapes.iter().any(|shape| shape.size > 0)
    }

    /// Which VMs are to be in store, where a container without limits has `memory` MiB and `vcpus`
    /// processors, and a VM needs `overhead` MiB beside: the first first, as long as they fit.
    pub fn wanted(&self, memory: u64, vcpus: u32, overhead: u64) -> Vec<(u64, u32)> {
        let plain = Shape {
            size: self.size,
            memory,
            vcpus,
        };
        let shapes = [&plain].into_iter().chain(&self.shapes);
        let each = shapes.flat_map(|shape| (0..shape.size).map(|_| (shape.memory, shape.vcpus)));
        let mut left = match self.memory {
            0 => u64::MAX,
            most => most,
        };
        each.take_while(|(memory, _)| {
            let fits = left.checked_sub(memory + overhead);
            left = fits.unwrap_or_default();
            fits.is_some()
        })
        .collect()
    }

    /// # Errors
    /// What of it is wrong; `memory` and `vcpus` say what a VM may have.
    pub fn check(
        &self,
        memory: impl Fn(&str, u64) -> Result<(), String>,
        vcpus: impl Fn(&str, u32) -> Result<(), String>,
    ) -> Result<(), String> {
        let shapes = self.shapes.iter();
        let size = shapes.fold(self.size, |all, shape| all.saturating_add(shape.size));
        if self.directory.is_relative() {
            return Err(format!(
                "pool.directory: {:?} is not an absolute path",
                self.directory
            ));
        }
        if size > MOST {
            return Err(format!(
                "pool.size = {size}, with its shapes: more than {MOST}"
            ));
        }
        for shape in &self.shapes {
            memory("pool.shapes.memory", shape.memory)?;
            vcpus("pool.shapes.vcpus", shape.vcpus)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_wanted_than_fit() {
        let shape = Shape {
            size: 2,
            memory: 1024,
            vcpus: 2,
        };
        let mut settings = Settings {
            size: 2,
            shapes: vec![shape],
            ..Settings::default()
        };
        let all = [(512, 1), (512, 1), (1024, 2), (1024, 2)];
        assert_eq!(settings.wanted(512, 1, 100), all);
        for (memory, count) in [(1, 0), (612, 1), (1223, 1), (1224, 2), (2348, 3), (9000, 4)] {
            settings.memory = memory;
            assert_eq!(settings.wanted(512, 1, 100), all[..count], "{memory}");
        }
        assert!(settings.is_on() && !Settings::default().is_on());
    }
}
