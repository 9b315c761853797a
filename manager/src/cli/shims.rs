//! What the shims of our tasks tell of themselves: by the command `inspect` that shims of ours have.

use crate::bundles::{self, Files};
use crate::config::Config;
use crate::names::Key;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long the command may take: a shim that does not answer is told of within a second.
const LIMIT: Duration = Duration::from_secs(5);

/// What every shim on this machine tells that is of a program which serves a task here. Another's shim
/// has no such command, and tells nothing.
pub fn reports(config: &Config) -> Vec<Value> {
    let programs = programs(config);
    programs.iter().flat_map(|program| told(program)).collect()
}

/// What the shim tells that serves this container, or is about to.
pub fn of(config: &Config, key: &Key) -> Option<Value> {
    let is_id = |id: &Value| id.as_str() == Some(&key.id);
    let serves = |report: &Value| {
        let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
        report["namespace"].as_str() == Some(&key.namespace)
            && (list("containers").iter().any(|it| is_id(&it["id"]))
                || list("creating").iter().any(is_id)
                || is_id(&report["id"]))
    };
    reports(config).into_iter().find(serves)
}

/// Where the shims are from, by the bundles, which nobody writes but the daemon.
fn programs(config: &Config) -> BTreeSet<PathBuf> {
    let tasks = bundles::dir(&config.state);
    let path = |key: Key| {
        let files = Files {
            path: tasks.join(key.namespace).join(key.id),
            work: PathBuf::new(),
        };
        files.shim_path()
    };
    bundles::keys(&tasks).filter_map(path).collect()
}

/// All that its shims tell. No namespace is named: without one, whoever does not know the command
/// refuses it, and with one might serve instead.
fn told(program: &Path) -> Vec<Value> {
    let mut command = Command::new(program);
    command
        .args(["inspect", "-json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else {
        return Vec::new();
    };
    let (said, text) = mpsc::channel();
    if let Some(mut stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.read_to_end(&mut text);
            let _ = said.send(text);
        });
    }
    let text = text.recv_timeout(LIMIT).unwrap_or_default();
    let _ = child.kill();
    let lines = text.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect()
}
