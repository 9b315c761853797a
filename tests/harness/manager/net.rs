// SPDX-License-Identifier: Apache-2.0
//! A network that a test has for itself, and what is left of it.

use super::Manager;
use crate::peers;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A network of one test: a bridge, a subnet, a store of addresses.
pub struct Net {
    number: u32,
    pub dir: PathBuf,
}

impl Net {
    pub fn make() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() % 50 * 20 + COUNT.fetch_add(1, Ordering::Relaxed) % 20;
        let dir = PathBuf::from(format!("/tmp/dn{}-{number}", std::process::id()));
        fs::create_dir_all(dir.join("net.d")).expect("a directory");
        let it = Self { number, dir };
        it.write(&it.name(), &[]);
        it
    }

    pub fn name(&self) -> String {
        format!("dn{}", self.number)
    }

    pub fn prefix(&self) -> String {
        format!("10.{}.{}", 200 + self.number / 250, self.number % 250)
    }

    /// A port of the host's, of this test alone.
    pub fn port(&self, which: u32) -> u16 {
        (20_000 + self.number * 10 + which) as u16
    }

    /// The list of plugins that is called so; `more` come after the usual ones.
    pub fn write(&self, name: &str, more: &[Value]) {
        let mut plugins = vec![
            json!({
                "type": "bridge", "bridge": self.name(), "isGateway": true, "ipMasq": true,
                "ipam": {
                    "type": "host-local", "dataDir": self.dir.join("ipam"),
                    "ranges": [[{"subnet": format!("{}.0/24", self.prefix())}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }),
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
            json!({"type": "firewall"}),
        ];
        plugins.extend_from_slice(more);
        let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins});
        let file = self.dir.join("net.d").join(format!("{name}.conflist"));
        fs::write(file, list.to_string()).expect("a list");
    }

    pub fn config(&self) -> String {
        format!(
            "[network]\nconfig_dirs = [{:?}]\nplugin_dirs = [{:?}, {:?}]\n",
            self.dir.join("net.d"),
            self.dir.join("bin"),
            peers::cni(),
        )
    }

    /// The addresses that are given away.
    pub fn leases(&self) -> Vec<String> {
        let stores = fs::read_dir(self.dir.join("ipam")).into_iter().flatten();
        let files = stores
            .flatten()
            .flat_map(|store| fs::read_dir(store.path()));
        let names = files.flatten().flatten();
        let names = names.map(|file| file.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("10.")).collect()
    }

    /// What there is of it besides the bridge.
    pub fn left(&self, manager: &Manager) -> Vec<String> {
        let said = |program: &str, args: &[&str]| {
            let output = Command::new(program)
                .args(args)
                .output()
                .expect("a program");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let mut left = self.leases();
        let (name, address) = (
            format!("\"{}\"", self.name()),
            format!("{}.", self.prefix()),
        );
        let rules = said("iptables-save", &[]);
        let ours = |line: &&str| line.contains(&name) || line.contains(&address);
        left.extend(rules.lines().filter(ours).map(str::to_owned));
        let ports = said("ip", &["-o", "link", "show", "master", &self.name()]);
        left.extend(ports.lines().map(str::to_owned));
        for dir in ["r/networks", "s/networks"] {
            let entries = fs::read_dir(manager.dir().join(dir)).into_iter().flatten();
            left.extend(entries.flatten().map(|it| it.path().display().to_string()));
        }
        left
    }

    /// Removes what is the kernel's, and gone after a reboot: its rules, each in its table.
    pub fn forget_rules(&self) {
        let rules = Command::new("iptables-save").output();
        let rules = rules.map(|it| it.stdout).unwrap_or_default();
        let rules = String::from_utf8_lossy(&rules).into_owned();
        let (name, address) = (
            format!("\"{}\"", self.name()),
            format!("{}.", self.prefix()),
        );
        let mut orders = String::new();
        let mut chains = BTreeSet::new();
        for line in rules.lines() {
            if line.starts_with('*') || line == "COMMIT" {
                // Once nothing leads there any more.
                for chain in std::mem::take(&mut chains) {
                    orders += &format!("-F {chain}\n-X {chain}\n");
                }
                orders += &format!("{line}\n");
            } else if line.starts_with("-A") && (line.contains(&name) || line.contains(&address)) {
                let (_, target) = line.rsplit_once(" -j ").expect("a target");
                let is_own = line.contains(" id: ") && target.starts_with("CNI-");
                chains.extend(is_own.then(|| target.to_owned()));
                orders += &line.replacen("-A", "-D", 1);
                orders += "\n";
            }
        }
        let mut restore = Command::new("iptables-restore");
        restore.arg("--noflush").stdin(std::process::Stdio::piped());
        let Ok(mut restore) = restore.spawn() else {
            return;
        };
        if let Some(mut stdin) = restore.stdin.take() {
            let _ = stdin.write_all(orders.as_bytes());
        }
        let _ = restore.wait();
    }

    #[track_caller]
    pub fn is_clean(&self, manager: &Manager) {
        let left = self.left(manager);
        assert!(left.is_empty(), "left: {left:#?}");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Of a test that has failed.
        self.forget_rules();
        let bridge = self.name();
        let _ = Command::new("ip")
            .args(["link", "delete", &bridge])
            .output();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
