// SPDX-License-Identifier: Apache-2.0
//! What the node can do, in a file that node-feature-discovery makes a label of the node of: so
//! nobody here needs leave to change nodes.

use crate::arguments::{Arguments, Vm};
use crate::config;
use crate::failure::Result;
use std::path::PathBuf;

const OWN: &str = "dunnage";
const BEGIN: &str = "# dunnage-node wrote this, and takes it away again.\n";
/// `kvm` or `tcg`: what containers in VMs have.
const LABEL: &str = "dunnage.io/vm";

/// Says what VMs have on this node, or nothing if there are none; true if that is new.
///
/// # Errors
/// If somebody else's file is there, or it cannot be written.
pub fn tell(arguments: &Arguments) -> Result<bool> {
    match (own(arguments), arguments.vm()) {
        (None, _) => Ok(false),
        (Some(own), Vm::No) => config::remove_own(&own, BEGIN),
        (Some(own), vm) => config::write_own(&own, BEGIN, &format!("{LABEL}={vm}\n")),
    }
}

/// Takes that back.
///
/// # Errors
/// If the file could not be removed.
pub fn forget(arguments: &Arguments) -> Result<()> {
    if let Some(own) = own(arguments) {
        config::remove_own(&own, BEGIN)?;
    }
    Ok(())
}

fn own(arguments: &Arguments) -> Option<PathBuf> {
    let dir = arguments.features.as_ref()?;
    Some(arguments.seen(&dir.join(OWN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// node-feature-discovery reads lines `NAMESPACE/NAME=VALUE`; what begins with `#` is a comment,
    /// and with `# +` a directive.
    #[test]
    fn a_label_says_what_vms_have() {
        let root = tempfile::tempdir().unwrap();
        let parsed = |vm: &str| {
            let line = format!(
                "install --vm {vm} --features /etc/features.d --root {}",
                root.path().display()
            );
            Arguments::parse(line.split_whitespace().map(str::to_owned)).unwrap()
        };
        let path = root.path().join("etc/features.d/dunnage");
        for (vm, label) in [("kvm", "dunnage.io/vm=kvm"), ("tcg", "dunnage.io/vm=tcg")] {
            assert!(tell(&parsed(vm)).unwrap());
            assert!(!tell(&parsed(vm)).unwrap(), "the second time");
            let text = std::fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = text.lines().filter(|it| !it.starts_with('#')).collect();
            assert_eq!(lines, [label]);
            assert!(!text.contains("# +"));
        }
        assert!(tell(&parsed("no")).unwrap());
        assert!(!path.exists());
        tell(&parsed("kvm")).unwrap();
        forget(&parsed("auto")).unwrap();
        assert!(!path.exists());
    }
}
