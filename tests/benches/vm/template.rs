// SPDX-License-Identifier: Apache-2.0
//! VMs that go on as one that was saved, beside those that boot: how soon, and what each holds.

use super::{density, first_output};
use crate::sample::Sample;
use harness::{Test, peers};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

pub struct Templates {
    config: String,
    shim: Sample,
    restore: Sample,
    held: Value,
}

impl Templates {
    /// Makes the template of VMs as `config` has them otherwise; `None` with a QEMU that can't.
    pub fn new(dir: &Path, config: &str) -> Option<Self> {
        let path = dir.join("templates.toml");
        let text = fs::read_to_string(config).expect("a configuration");
        fs::write(&path, format!("{text}templates = true\n")).expect("a configuration");
        let templates = Self {
            config: path.to_string_lossy().into_owned(),
            shim: Sample::default(),
            restore: Sample::default(),
            held: Value::Null,
        };
        let made = templates.run("template");
        if !made.0 {
            println!("no templates: {}", made.1);
        }
        made.0.then_some(templates)
    }

    /// Whether `command` of the shim's succeeded, and what it said.
    fn run(&self, command: &str) -> (bool, String) {
        let mut shim = Command::new(peers::vm_shim());
        shim.arg(command).env("DUNNAGE_VM_CONFIG", &self.config);
        let output = shim.output().expect("the shim");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// One VM: what `check` says of its beginning, and from the shim's `start` to a container's first output.
    pub async fn round(&mut self, test: &Test, id: &str) {
        let (_, text) = self.run("check");
        let number = |line: &str| {
            let (number, _) = line.strip_prefix("restore")?.split_once(" ms ")?;
            number.trim().parse().ok()
        };
        let ms = text.lines().find_map(number);
        self.restore
            .push(ms.unwrap_or_else(|| panic!("it was not restored: {text}")));
        let (shim, took) = first_output(test, id, &self.config).await;
        self.shim.time(took);
        shim.stopped().await;
    }

    pub async fn density(&mut self, test: &Test, name: &str) {
        self.held = density::measure(test, &format!("{name}-of"), &self.config).await;
    }

    pub fn json(self) -> Value {
        json!({"shim": self.shim.json(), "restore": self.restore.json(), "held": self.held})
    }
}
