// SPDX-License-Identifier: Apache-2.0
//! What the shims of our tasks tell of themselves: by the command `inspect` that shims of ours have.

use super::{output, shim_metrics};
use crate::bundles::{self, Files};
use crate::config::Config;
use crate::metrics;
use crate::names::Key;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

/// How long the command may take: a shim that does not answer is told of within a second.
const LIMIT: Duration = Duration::from_secs(5);

/// What is asked of the machine's shims, whoever has started them.
#[derive(Debug, clap::Args)]
pub struct Shims {
    /// Print metrics for Prometheus
    #[arg(long)]
    metrics: bool,
    /// Serve the metrics at HOST:PORT or /path/of.sock, until killed
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
}

/// What the programs of shims are called that know the command, and of others that refuse it.
const NAMES: &str = "containerd-shim-";

impl Shims {
    /// # Errors
    /// A text.
    pub async fn obey(&self, as_json: bool) -> Result<u8, String> {
        if let Some(address) = &self.listen {
            let page: metrics::Page = Rc::new(|| Box::pin(async { shim_metrics::text(&all()) }));
            metrics::listen(address, page)
                .await
                .map_err(|e| format!("--listen {address}: {e}"))?;
            return std::future::pending().await;
        }
        let reports = all();
        if self.metrics {
            let text = shim_metrics::text(&reports);
            output::write(&mut std::io::stdout().lock(), text.as_bytes())?;
            return Ok(0);
        }
        let keys = [
            "namespace",
            "id",
            "pid",
            "version",
            "uptime_seconds",
            "memory_bytes",
            "containers",
            "calls",
            "cause",
        ];
        let rows: Vec<Value> = reports.iter().map(row).collect();
        output::rows(&keys, &rows, as_json).map(|()| 0)
    }
}

fn row(report: &Value) -> Value {
    let length = |key: &str| report[key].as_array().map_or(0, Vec::len);
    let seconds = report["process"]["seconds"].as_f64().unwrap_or(0.0);
    json!({
        "namespace": report["namespace"],
        "id": report["id"],
        "pid": report["pid"],
        "version": report["version"],
        "uptime_seconds": seconds as u64,
        "memory_bytes": report["process"]["memory_bytes"],
        "containers": length("containers"),
        "calls": length("calls"),
        "cause": report["causes"][0].as_str().unwrap_or_default(),
    })
}

/// What every shim of this machine tells, by namespace and id.
fn all() -> Vec<Value> {
    let pids = task::proc::all().into_iter().flatten();
    let ours = pids.filter(|&pid| task::proc::is_ours(pid, NAMES));
    let programs: BTreeSet<PathBuf> = ours.filter_map(task::proc::program).collect();
    let reports = programs.iter().flat_map(|program| told(program));
    // Two programs of one name tell of the same shims.
    let key = |report: &Value| {
        let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
        (text("namespace"), text("id"), report["pid"].as_u64())
    };
    let all: BTreeMap<_, _> = reports.map(|report| (key(&report), report)).collect();
    all.into_values().collect()
}

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
