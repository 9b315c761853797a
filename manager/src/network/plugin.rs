// SPDX-License-Identifier: Apache-2.0
//! Running one CNI plugin: the environment and stdin that it reads, the result or the error that it
//! prints (CNI's SPEC.md, "Execution protocol").

use crate::launch;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use task::Command;
use task::reaper::Reaper;

/// How long a plugin may take.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// The most that is read of what one prints.
const PRINTED: u64 = 1 << 20;
/// How the container's own device is called.
pub const DEVICE: &str = "eth0";

/// For whom plugins are run.
pub struct Runner<'a> {
    pub reaper: &'a Reaper,
    pub dirs: &'a [PathBuf],
    pub container: &'a str,
    /// None: it is gone, as after a reboot.
    pub netns: Option<&'a Path>,
}

impl Runner<'_> {
    /// Where plugin `kind` is.
    ///
    /// # Errors
    /// A text that names it, and where it was looked for.
    pub fn find(&self, kind: &str) -> Result<PathBuf, String> {
        let is_name = !kind.is_empty() && !kind.contains('/') && kind != "." && kind != "..";
        let mut places = self.dirs.iter().map(|dir| dir.join(kind));
        let found = places.find(|path| is_name && path.is_file());
        found.ok_or_else(|| {
            let dirs: Vec<String> = self
                .dirs
                .iter()
                .map(|it| it.display().to_string())
                .collect();
            format!("plugin {kind:?}: not in {}", dirs.join(" or "))
        })
    }

    /// Has plugin `kind` do `what` (`ADD`, `DEL`) to `device`; its result, if it prints one.
    ///
    /// # Errors
    /// A text that names the plugin, and what it says.
    pub async fn run(
        &self,
        what: &str,
        kind: &str,
        device: &str,
        request: &Value,
    ) -> Result<Option<Value>, String> {
        let failed = |e: &dyn std::fmt::Display| format!("plugin {kind:?}: {what}: {e}");
        let program = self.find(kind)?;
        let file = |name: &str| memory(name).map_err(|e| failed(&e));
        let (mut input, mut output, mut errors) = (file("in")?, file("out")?, file("err")?);
        let written = input.write_all(request.to_string().as_bytes());
        let written = written.and_then(|()| input.rewind());
        written.map_err(|e| failed(&e))?;
        let copy = |file: &File| file.try_clone().map_err(|e| failed(&e));
        let mut command = Command::new(&program);
        command
            .env("CNI_COMMAND", what)
            .env("CNI_CONTAINERID", self.container)
            .env("CNI_NETNS", self.netns.unwrap_or(Path::new("")))
            .env("CNI_IFNAME", device)
            .env(
                "CNI_PATH",
                std::env::join_paths(self.dirs).map_err(|e| failed(&e))?,
            )
            .stdin(input)
            .stdout(copy(&output)?)
            .stderr(copy(&errors)?)
            .die_with_parent();
        let ended = launch::run(self.reaper, command, TIMEOUT).await;
        let status = ended.map_err(|e| failed(&e))?;
        let printed = all(&mut output).map_err(|e| failed(&e))?;
        let read: Option<Value> = serde_json::from_slice(&printed).ok();
        if status.success() {
            return Ok(read);
        }
        let said = read.and_then(|read| words(&read)).or_else(|| {
            let said = all(&mut errors).ok()?;
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            (!said.is_empty()).then_some(said)
        });
        Err(failed(&said.unwrap_or_else(|| status.to_string())))
    }
}

/// What a plugin's error says.
fn words(error: &Value) -> Option<String> {
    let msg = error["msg"].as_str()?;
    Some(match error["details"].as_str() {
        Some(details) if !details.is_empty() => format!("{msg}: {details}"),
        _ => msg.to_owned(),
    })
}

/// A file in memory, so that nobody waits for who reads or writes the other end.
fn memory(name: &str) -> io::Result<File> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC)?.into())
}

fn all(file: &mut File) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    file.rewind()?;
    file.take(PRINTED).read_to_end(&mut all)?;
    Ok(all)
}
