// SPDX-License-Identifier: Apache-2.0
//! The `upgrade` command: has running shims become the binary that this command is.

use super::{Daemon, ask, ask_all, daemons};
use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::runtime;
use protos::operator::{UpgradeRequest, UpgradeResponse};
use protos::{Code, Status};
use std::time::Duration;

/// How long one shim may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many are asked at once: each starts the new binary, to have it look at the state.
const AT_ONCE: usize = 32;

type Answer = std::result::Result<UpgradeResponse, Status>;

/// Upgrades every shim called `program` that `filter` names, and prints a line for each.
///
/// # Errors
/// If one of them refuses; the others are upgraded all the same.
pub fn upgrade(program: &str, filter: &Flags) -> Result<()> {
    let binary = std::env::current_exe().map_err(|e| Error::io("find", "own binary", e))?;
    let binary = binary.to_string_lossy().into_owned();
    let upgrade = |pid| {
        let binary = binary.clone();
        ask(pid, UpgradeRequest { binary }, TIMEOUT)
    };
    let answers = runtime()?.block_on(ask_all(daemons(program, filter)?, AT_ONCE, upgrade))?;
    let (mut report, mut refused) = (String::new(), 0);
    for answer in answers {
        let (said, is_refused) = line_of(answer);
        refused += u32::from(is_refused);
        report += &said;
    }
    crate::print(task::printable(&report).as_bytes())?;
    match refused {
        0 => Ok(()),
        1 => Err(Error::new("one shim was not upgraded")),
        n => Err(Error::new(format!("{n} shims were not upgraded"))),
    }
}

/// The line about one shim, whatever it said, and whether it was not upgraded.
fn line_of((daemon, answer): (Daemon, Answer)) -> (String, bool) {
    let Daemon { pid, flags } = daemon;
    let (said, refused) = match answer {
        Ok(answer) => (format!("runs {}", answer.version), false),
        Err(status) if status.code == Code::Unimplemented => ("left alone: not ours".into(), false),
        Err(status) => (format!("refused: {}", status.message), true),
    };
    let line = format!("{}/{} pid {pid}: {said}", flags.namespace, flags.id);
    (line.replace(['\n', '\t'], " ") + "\n", refused)
}
