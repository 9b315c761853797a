// SPDX-License-Identifier: Apache-2.0
//! `doctor`: what should not be there, and `--fix`.
//!
//! It looks at the machine, not at the daemon's word: shims of ours without a bundle, bundles
//! that the daemon does not know, sockets that nobody answers, mounts of bundles that are gone, networks
//! of no container; and tasks whose container has no record, which get one again. What hangs its shim
//! says, and the kernel.

use super::client::Client;
use super::run::{self, said};
use super::{output, show};
use crate::bundles::{self, names};
use crate::config::Config;
use crate::names::Key;
use crate::network::{self, LABEL, Wish};
use protos::services::containers::v1::CreateContainerRequest;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use task::ProcessId;
use task::bundle::{Bundle, read_pid};

/// What is younger than this may still be on its way.
const YOUNG: Duration = Duration::from_secs(60);

enum Found {
    Shim {
        pid: u32,
        /// Held since it was found to be one: whoever has its pid later is not meant.
        process: OwnedFd,
        key: Key,
    },
    Bundle(PathBuf),
    Socket(PathBuf),
    Mount(PathBuf),
    /// One that lives, and that nobody can reach.
    Task(Key),
    /// One of no container.
    Network(Wish),
    /// Something takes long, and why: a sentence.
    Wait(String),
}

impl Found {
    fn kind_and_what(&self) -> (&'static str, String) {
        match self {
            Self::Shim { pid, key, .. } => ("leaked shim", format!("{pid} of {key}")),
            Self::Bundle(path) => ("orphan bundle", path.display().to_string()),
            Self::Socket(path) => ("stale socket", path.display().to_string()),
            Self::Mount(path) => ("stale mount", path.display().to_string()),
            Self::Task(key) => ("task without a record", key.to_string()),
            Self::Network(wish) => (
                "orphan network",
                format!("{} in {}", wish.key, wish.network),
            ),
            Self::Wait(why) => ("wait", why.clone()),
        }
    }

    async fn fix(&self, client: &Client, config: &Config) -> Result<(), String> {
        let failed = |e: std::io::Error| e.to_string();
        match self {
            Self::Shim { process, .. } => task::sys::pidfd_kill(process).map_err(failed),
            Self::Bundle(path) => {
                // Removing what is mounted there would remove what is not ours.
                while let Some(mount) = mounts()?.iter().rfind(|mount| mount.starts_with(path)) {
                    unmount(mount)?;
                }
                std::fs::remove_dir_all(path).map_err(failed)
            }
            Self::Socket(path) => std::fs::remove_file(path).map_err(failed),
            Self::Mount(path) => unmount(path),
            Self::Task(key) => record(&client.of(&key.namespace)?, config, key).await,
            Self::Network(wish) => super::network::remove(config, wish.clone()).await,
            Self::Wait(_) => Err("found (it ends with its cause)".to_owned()),
        }
    }
}

/// Makes a task's container known again, by what its bundle says of it.
async fn record(client: &Client, config: &Config, key: &Key) -> Result<(), String> {
    let spec = spec(config, key)?;
    let path = bundle(config, key);
    let work = PathBuf::new();
    let shim = bundles::Files { path, work }
        .shim_path()
        .unwrap_or_default();
    let network = network::of_spec(config, &spec);
    let mut container = run::record(&key.id, shim.display().to_string(), spec);
    let label = network.map(|(_, label)| (LABEL.to_owned(), label));
    container.labels.extend(label);
    let request = client.request(CreateContainerRequest {
        container: Some(container),
    });
    let created = client.containers().create(request).await;
    created.map(drop).map_err(said)
}

fn bundle(config: &Config, key: &Key) -> PathBuf {
    let tasks = bundles::dir(&config.state);
    tasks.join(&key.namespace).join(&key.id)
}

fn spec(config: &Config, key: &Key) -> Result<Vec<u8>, String> {
    let spec = bundle(config, key).join("config.json");
    std::fs::read(&spec).map_err(|e| format!("{}: {e}", spec.display()))
}

fn unmount(path: &Path) -> Result<(), String> {
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH)
        .map_err(|e| format!("unmount {}: {e}", path.display()))
}

/// Every mount point, later mounts last.
///
/// # Errors
/// If they can't be read: nobody knows then what is mounted.
fn mounts() -> Result<Vec<PathBuf>, String> {
    const TABLE: &str = "/proc/self/mounts";
    let mounts = std::fs::read(TABLE).map_err(|e| format!("{TABLE}: {e}"))?;
    let lines = mounts.split(|&byte| byte == b'\n');
    let targets = lines.filter_map(|line| line.split(|&byte| byte == b' ').nth(1));
    // Only ids and our own names are below `state`: there is nothing to unescape there.
    let path = |target| PathBuf::from(OsStr::from_bytes(target));
    Ok(targets.map(path).collect())
}

/// Looks, tells, and cleans if it shall; 1 if something is left.
pub async fn doctor(
    client: &Client,
    config: &Config,
    fix: bool,
    as_json: bool,
) -> Result<u8, String> {
    for dir in [&bundles::dir(&config.state), &config.shim.socket_dir] {
        may_look(dir)?;
    }
    let (known, mut found) = tasks(client, config).await?;
    found.extend(look(config, &known)?);
    let mut left = 0;
    let mut records = Vec::new();
    for one in &found {
        let (kind, what) = one.kind_and_what();
        let fixed = match fix {
            true => one.fix(client, config).await.map(|()| "cleaned"),
            false => Err("found (--fix cleans)".to_owned()),
        };
        left += usize::from(fixed.is_err());
        let state = fixed.map_or_else(|e| e, str::to_owned);
        records.push(json!({"kind": kind, "what": what, "state": state}));
    }
    if found.is_empty() && !as_json {
        output::line("nothing is wrong")?;
    } else {
        output::rows(&["kind", "what", "state"], &records, as_json)?;
    }
    Ok(u8::from(left > 0))
}

/// # Errors
/// A text that names the directory, if what is wrong in there would not be seen.
fn may_look(dir: &Path) -> Result<(), String> {
    match std::fs::read_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot look at {}: {e}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Every task that the daemon has, those without a record, and networks of no record.
async fn tasks(client: &Client, config: &Config) -> Result<(HashSet<Key>, Vec<Found>), String> {
    let listed = super::control::namespaces(client).await?;
    let mut namespaces: BTreeSet<String> = listed.into_iter().map(|it| it.name).collect();
    // A task may be in one that is no more.
    namespaces.extend(names(&bundles::dir(&config.state)));
    let (mut known, mut found) = (HashSet::new(), Vec::new());
    let mut networks = Vec::new();
    for namespace in namespaces {
        let client = client.of(&namespace)?;
        let recorded = show::containers(&client, &[]).await?;
        let wishes = recorded.iter().map(|it| network::wish(&it.labels));
        networks.extend(wishes.flatten().flatten().map(|wish| wish.key));
        for task in show::tasks(&client).await? {
            let key = Key::new(&namespace, &task.id);
            if !recorded.iter().any(|container| container.id == task.id) {
                let spec = spec(config, &key).unwrap_or_default();
                networks.extend(network::of_spec(config, &spec).map(|(key, _)| key));
                found.push(Found::Task(key.clone()));
            }
            known.insert(key);
        }
    }
    let orphans = network::orphans(config, &networks);
    found.extend(orphans.into_iter().map(Found::Network));
    Ok((known, found))
}

/// What our shims wait for, by their own word.
fn waits(pids: &HashSet<u64>) -> impl Fn(Value) -> Vec<Found> + '_ {
    |report| {
        let is_ours = report["pid"]
            .as_u64()
            .is_some_and(|pid| pids.contains(&pid));
        let text = |name: &str| report[name].as_str().unwrap_or_default().to_owned();
        let key = Key::new(&text("namespace"), &text("id"));
        let causes = report["causes"].as_array().filter(|_| is_ours);
        let causes = causes.into_iter().flatten().filter_map(Value::as_str);
        causes
            .map(|cause| Found::Wait(format!("{key}: {cause}")))
            .collect()
    }
}

fn look(config: &Config, known: &HashSet<Key>) -> Result<Vec<Found>, String> {
    let tasks = bundles::dir(&config.state);
    let bundle_of = |key: &Key| tasks.join(&key.namespace).join(&key.id);
    let shims = shims(config);
    let pids = shims.iter().map(|(pid, ..)| u64::from(*pid)).collect();
    let reports = super::shims::reports(config).into_iter();
    let mut found: Vec<Found> = reports.flat_map(waits(&pids)).collect();
    for (pid, process, key) in shims {
        // A shim of a group serves several; only one without any bundle is lost.
        if !bundle_of(&key).exists() && !serves_another(&tasks, pid) {
            found.push(Found::Shim { pid, process, key });
        }
    }
    for key in bundles::keys(&tasks) {
        let bundle = bundle_of(&key);
        // A young one may belong to a task that is being created.
        if !known.contains(&key) && !is_young(&bundle) {
            found.push(Found::Bundle(bundle));
        }
    }
    for name in names(&config.shim.socket_dir) {
        let path = config.shim.socket_dir.join(name);
        if UnixStream::connect(&path)
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        {
            found.push(Found::Socket(path));
        }
    }
    // The latest first: it may lie on another.
    for target in mounts()?.into_iter().rev() {
        let Ok(rest) = target.strip_prefix(&tasks) else {
            continue;
        };
        let mut parts = rest.iter().map(|part| part.to_string_lossy().into_owned());
        let Some((namespace, id)) = parts.next().zip(parts.next()) else {
            continue;
        };
        let key = Key { namespace, id };
        let bundle = bundle_of(&key);
        let is_orphans = found
            .iter()
            .any(|it| matches!(it, Found::Bundle(of) if *of == bundle));
        if !known.contains(&key) && !is_orphans && !is_young(&bundle) {
            found.push(Found::Mount(target));
        }
    }
    Ok(found)
}

fn is_young(bundle: &Path) -> bool {
    let made = std::fs::metadata(bundle.join("config.json"))
        .or_else(|_| std::fs::metadata(bundle))
        .and_then(|it| it.modified());
    made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age < YOUNG))
}

/// Shims that were started for our socket: pid, a hold on it, and for whom.
fn shims(config: &Config) -> Vec<(u32, OwnedFd, Key)> {
    let address = config.grpc.address.display().to_string();
    let mut shims = Vec::new();
    for pid in names(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse::<u32>().ok())
    {
        // First held, then asked who it is.
        let Ok(process) = task::sys::pidfd(pid) else {
            continue;
        };
        let words = task::proc::command_line(pid);
        let after = |flag: &str| {
            let at = words.iter().position(|word| word == flag)?;
            words.get(at + 1).cloned()
        };
        let is_command = words.iter().any(|word| word == "start" || word == "delete");
        if after("-address").as_deref() == Some(&address)
            && !is_command
            && let Some((namespace, id)) = after("-namespace").zip(after("-id"))
        {
            shims.push((pid, process, Key { namespace, id }));
        }
    }
    shims
}

/// True if some bundle's container is a child of this shim.
fn serves_another(tasks: &Path, shim: u32) -> bool {
    bundles::keys(tasks).any(|key| {
        let bundle = Bundle::new(tasks.join(key.namespace).join(key.id));
        let pid = read_pid(&bundle.pid(&ProcessId::Init));
        pid.is_ok_and(|pid| task::proc::parent(pid) == Some(shim))
    })
}
