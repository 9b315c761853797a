// SPDX-License-Identifier: Apache-2.0
//! `ls`, `ps`, `inspect`, `stats`, `info` and `version`: what there is.

use super::client::{Client, lasting};
use super::control;
use super::network;
use super::output::{self, line, rows, status};
use super::run::{NotRun, said};
use super::shims;
use super::verbs::one_by_one;
use crate::config::Config;
use crate::health;
use crate::images::Made;
use crate::names::Key;
use protos::cgroups::{v1, v2};
use protos::services::containers::v1::{Container, ListContainersRequest};
use protos::services::tasks::v1::*;
use protos::task_types::Process;
use protos::types::Metric;
use protos::{Message, any, runc, vm};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

/// How often `stats` looks.
const EVERY: Duration = Duration::from_secs(1);
/// More memory than this is what the kernel calls no limit.
const NO_LIMIT: u64 = 1 << 60;
/// What `stats` tells of each container.
const USAGE: [&str; 6] = [
    "id",
    "cpu_percent",
    "memory_bytes",
    "limit_bytes",
    "pids",
    "vm_memory_bytes",
];

/// Every task of the namespace.
pub async fn tasks(client: &Client) -> Result<Vec<Process>, String> {
    let request = client.request(ListTasksRequest::default());
    let listed = client.tasks().list(request).await.map_err(said)?;
    Ok(listed.into_inner().tasks)
}

/// The containers of the namespace that the filters choose.
pub async fn containers(client: &Client, filters: &[String]) -> Result<Vec<Container>, String> {
    let request = client.request(ListContainersRequest {
        filters: filters.to_vec(),
    });
    let listed = client.containers().list(request).await.map_err(said)?;
    Ok(listed.into_inner().containers)
}

pub async fn ls(
    client: &Client,
    quiet: bool,
    as_json: bool,
    filters: &[String],
) -> Result<(), String> {
    let containers = containers(client, filters).await?;
    if quiet {
        return containers
            .iter()
            .try_for_each(|container| line(&container.id));
    }
    let tasks = tasks(client).await?;
    let tasks: HashMap<&str, &Process> =
        tasks.iter().map(|task| (task.id.as_str(), task)).collect();
    let row = |container: &Container| {
        let task = tasks.get(container.id.as_str());
        let runtime = container
            .runtime
            .as_ref()
            .map_or("", |runtime| &runtime.name);
        let exit = task.filter(|task| task.status == protos::task_types::Status::Stopped as i32);
        json!({
            "id": container.id,
            "status": task.map_or("-", |task| status(task.status)),
            "pid": task.map(|task| task.pid),
            "exit": exit.map(|task| task.exit_status),
            "runtime": runtime,
            "created": output::time(container.created_at),
            // Of what does not run it is nobody's news.
            "health": task.filter(|_| exit.is_none()).and(container.labels.get(health::STATUS)),
        })
    };
    let keys = [
        "id", "status", "health", "pid", "exit", "runtime", "created",
    ];
    rows(
        &keys,
        &containers.iter().map(row).collect::<Vec<_>>(),
        as_json,
    )
}

pub async fn ps(client: &Client, id: &str, as_json: bool) -> Result<(), String> {
    let request = client.request(ListPidsRequest {
        container_id: id.to_owned(),
    });
    let listed = client.tasks().list_pids(request).await.map_err(said)?;
    let pids = listed.into_inner().processes;
    let row = |process: &protos::task_types::ProcessInfo| {
        let exec = process
            .info
            .as_ref()
            .and_then(any::unpack::<runc::ProcessDetails>);
        let exec = exec
            .and_then(Result::ok)
            .map_or(String::new(), |details| details.exec_id);
        let command = task::proc::command_line(process.pid).join(" ");
        json!({"pid": process.pid, "exec": exec, "command": command})
    };
    let pids: Vec<Value> = pids.iter().map(row).collect();
    rows(&["pid", "exec", "command"], &pids, as_json)
}

pub async fn inspect(
    client: &Client,
    config: &Config,
    key: &Key,
    as_json: bool,
) -> Result<(), String> {
    let id = &key.id;
    let container = control::container(client, id).await?;
    let task = control::state(client, id).await.ok();
    let spec = container.spec.as_ref().map_or(&[][..], |spec| &spec.value);
    let object = json!({
        "id": container.id,
        "labels": container.labels,
        "runtime": container.runtime.as_ref().map(|runtime| &runtime.name),
        "image": Made::of(&container).ok().flatten(),
        "created_at": output::time(container.created_at),
        "updated_at": output::time(container.updated_at),
        "health": super::health::of(&container),
        "task": task.map(|task| json!({
            "status": status(task.status),
            "pid": task.pid,
            "exit_status": task.exit_status,
            "exited_at": output::time(task.exited_at),
            "stdin": task.stdin,
            "stdout": task.stdout,
            "stderr": task.stderr,
            "terminal": task.terminal,
        })),
        "network": network::about(config, &container.labels),
        "shim": shims::of(config, key),
        "spec": task::json::read_first::<Value>(spec).ok(),
    });
    // One line a record, or one that people read.
    line(&if as_json {
        object.to_string()
    } else {
        format!("{object:#}")
    })
}

/// What `stats` shows of a container.
#[derive(Clone, Copy, Default)]
struct Usage {
    /// Nanoseconds.
    cpu: u64,
    memory: u64,
    limit: u64,
    pids: u64,
    /// Of the processes that its VM is, if it is in one.
    host: Option<u64>,
}

fn usage(metric: &Metric) -> Usage {
    let mut usage = Usage::default();
    let Some(data) = &metric.data else {
        return usage;
    };
    if let Some(Ok(stats)) = any::unpack::<v1::Metrics>(data) {
        usage.cpu = stats
            .cpu
            .and_then(|cpu| cpu.usage)
            .map_or(0, |cpu| cpu.total);
        if let Some(memory) = stats.memory.and_then(|memory| memory.usage) {
            (usage.memory, usage.limit) = (memory.usage, memory.limit);
        }
        usage.pids = stats.pids.map_or(0, |pids| pids.current);
    } else if let Some(Ok(stats)) = any::unpack::<v2::Metrics>(data) {
        usage.cpu = stats
            .cpu
            .map_or(0, |cpu| cpu.usage_usec.saturating_mul(1000));
        if let Some(memory) = stats.memory {
            (usage.memory, usage.limit) = (memory.usage, memory.usage_limit);
        }
        usage.pids = stats.pids.map_or(0, |pids| pids.current);
        let host = vm::Metrics::decode(data.value.as_slice()).ok();
        let host = host.and_then(|metrics| metrics.host);
        let memory = |host: vm::Host| {
            let processes = [host.vmm, host.files, host.shim];
            processes.iter().flatten().map(|of| of.memory).sum()
        };
        usage.host = host.map(memory);
    }
    usage
}

/// What all tasks use, or those of these containers; also by the next daemon.
async fn measure(
    client: &Client,
    ids: &[String],
) -> Result<(std::time::Instant, Vec<(String, Usage)>), String> {
    let metrics = lasting(async || {
        let request = client.request(MetricsRequest::default());
        client.tasks().metrics(request).await
    });
    let metrics = metrics.await.map_err(said)?.into_inner().metrics;
    let measured = metrics
        .iter()
        .filter(|metric| ids.is_empty() || ids.contains(&metric.id))
        .map(|metric| (metric.id.clone(), usage(metric)));
    Ok((std::time::Instant::now(), measured.collect()))
}

/// Whether a container that runs is in a VM, as its shim tells.
pub async fn is_in_vm(client: &Client, id: &str) -> Result<bool, String> {
    let (_, measured) = measure(client, &[id.to_owned()]).await?;
    Ok(measured.iter().any(|(_, usage)| usage.host.is_some()))
}

/// Live, like top; or once. Its exit code: that of the first container that has nothing to show.
pub async fn stats(
    client: &Client,
    once: bool,
    as_json: bool,
    ids: &[String],
) -> Result<u8, String> {
    let task = async |id: &str| {
        let task = control::state(client, id).await;
        task.map(drop).map_err(|e| NotRun::refused(id, said(e)))
    };
    let code = one_by_one(ids, task).await;
    let mut before = measure(client, ids).await?;
    loop {
        if before.1.is_empty() && code != 0 {
            return Ok(code);
        }
        tokio::time::sleep(EVERY).await;
        let now = measure(client, ids).await?;
        let elapsed = (now.0 - before.0).as_nanos().max(1) as f64;
        let row = |(id, usage): &(String, Usage)| {
            let old = before.1.iter().find(|(of, _)| of == id);
            let used = old.map_or(0, |(_, old)| usage.cpu.saturating_sub(old.cpu));
            json!({
                "id": id,
                "cpu_percent": used as f64 * 100.0 / elapsed,
                "memory_bytes": usage.memory,
                "limit_bytes": (usage.limit <= NO_LIMIT).then_some(usage.limit),
                "pids": usage.pids,
                "vm_memory_bytes": usage.host,
            })
        };
        if !once && !as_json {
            line("\x1b[H\x1b[2J")?;
        }
        let records: Vec<Value> = now.1.iter().map(row).collect();
        rows(&USAGE, &records, as_json)?;
        if once {
            return Ok(code);
        }
        before = now;
    }
}

pub async fn version(client: Result<Client, String>, as_json: bool) -> Result<(), String> {
    let record = |who: &str, version: &str, revision: &str| json!({"who": who, "version": version, "revision": revision});
    let mut records = vec![record("client", crate::VERSION, crate::REVISION)];
    match &client {
        Ok(client) => {
            let answer = client
                .version()
                .version(client.request(()))
                .await
                .map_err(said)?
                .into_inner();
            records.push(record("server", &answer.version, &answer.revision));
        }
        Err(e) => super::complain(e),
    }
    rows(&["who", "version", "revision"], &records, as_json)
}

pub async fn info(client: &Client, as_json: bool) -> Result<(), String> {
    let server = client
        .introspection()
        .server(client.request(()))
        .await
        .map_err(said)?
        .into_inner();
    let tasks = tasks(client).await?.len();
    let memory = task::proc::text(format!("/proc/{}/status", server.pid)).unwrap_or_default();
    let mut memory = memory.lines().filter_map(|line| {
        let kib = line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok()
    });
    let record = json!({
        "uuid": server.uuid,
        "pid": server.pid,
        "memory_bytes": memory.next().map(|kib| kib * 1024),
        "tasks": tasks,
    });
    rows(
        &["uuid", "pid", "memory_bytes", "tasks"],
        &[record],
        as_json,
    )
}
