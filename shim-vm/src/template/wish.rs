// SPDX-License-Identifier: Apache-2.0
//! That there be a template: another process makes it, when that is in nobody's way.

use super::{Identity, Store};
use crate::config::{Accel, Config};
use std::io;
use std::path::Path;
use task::Command;
use task::aside;
use task::reaper::{ExitStatus, Reaper};

/// The first word of a maker that is nobody's: it is there for others' sake.
pub const BACKGROUND: &str = "background";

/// What is to be made.
pub struct Wish {
    key: String,
    /// For `template`.
    words: Vec<String>,
}

impl Wish {
    /// For VMs of this configuration that run so.
    pub fn new(identity: &Identity, config: &Config, accel: Accel) -> Self {
        let accel = match accel {
            Accel::Kvm => "kvm",
            Accel::Tcg | Accel::Auto => "tcg",
        };
        let mut words = vec![
            BACKGROUND.to_owned(),
            format!("memory={}", config.memory),
            format!("vcpus={}", config.vcpus),
            format!("accel={accel}"),
        ];
        for (name, path) in [("kernel", &config.kernel), ("initrd", &config.initrd)] {
            if path != Path::new("") {
                words.push(format!("{name}={}", path.display()));
            }
        }
        Self {
            key: identity.key.clone(),
            words,
        }
    }

    /// Has it made. This process neither waits for that nor ends it.
    pub fn fulfil(self, reaper: &Reaper) {
        let begun = || -> io::Result<_> {
            let mut command = Command::new(std::env::current_exe()?);
            command
                .arg("template")
                .args(&self.words)
                .current_dir("/")
                .null(0..=2);
            reaper.spawn(&command)
        };
        let (mut maker, _) = match begun() {
            Ok(begun) => begun,
            Err(e) => return log::warn!("no template of VMs: {e}"),
        };
        tokio::task::spawn_local(async move {
            if maker.exit().await == ExitStatus::Code(0) {
                return;
            }
            let why = aside::run(move || Store::new().failure(&self.key)).await;
            let why = why.unwrap_or_else(|| "its maker was ended".into());
            log::warn!("no template of VMs: {why}");
        });
    }
}
