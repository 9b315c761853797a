// SPDX-License-Identifier: Apache-2.0
//! What was found out about this machine once, and holds until it boots or what it is about
//! changes: files in /run, which does not outlive a boot.

use std::fs;
use std::path::{Path, PathBuf};

const DIR: &str = "/run/dunnage";

fn file(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// What was found out as `name`, if it was found out about `about`; neither has line breaks.
pub fn recall(name: &str, about: &str) -> Option<String> {
    let text = task::proc::text(file(name)).ok()?;
    let (known, found) = text.split_once('\n')?;
    (known == about).then(|| found.to_owned())
}

/// Remembers it. That it can't be is in the log: it is found out anew the next time.
pub fn keep(name: &str, about: &str, found: &str) {
    let path = file(name);
    let temporary = file(&format!("{name}.{}", std::process::id()));
    let written = crate::place::make_run()
        .and_then(|()| fs::write(&temporary, format!("{about}\n{found}")))
        .and_then(|()| fs::rename(&temporary, &path));
    if let Err(e) = written {
        log::warn!("{}: {e}", path.display());
    }
}
