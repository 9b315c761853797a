//! `ls`, `ps`, `inspect`, `stats`, `info` and `version`: what there is.

use super::client::Client;
use super::control;
use super::output::{self, line, rows, status};
use super::run::said;
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

/// Every task of the namespace.
pub async fn tasks(client: &Client) -> Result<Vec<Process>, String> {
    let request = client.request(ListTasksRequest::default());
    let listed = client.tasks().list(request).await.map_err(said)?;
    Ok(listed.into_inner().tasks)
}

pub async fn ls(
    client: &Client,
    quiet: bool,
    json: bool,
    filters: &[String],
) -> Result<(), String> {
    let request = client.request(ListContainersRequest {
        filters: filters.to_vec(),
    });
    let listed = client.containers().list(request).await.map_err(said)?;
    let containers = listed.into_inner().containers;
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
        let state = task.map_or("-", |task| status(task.status)).to_owned();
        let exit = task.filter(|task| task.status == protos::task_types::Status::Stopped as i32);
        vec![
            container.id.clone(),
            state,
            task.map_or(String::new(), |task| task.pid.to_string()),
            exit.map_or(String::new(), |task| task.exit_status.to_string()),
            runtime.to_owned(),
            output::time(container.created_at),
        ]
    };
    let head = ["ID", "STATUS", "PID", "EXIT", "RUNTIME", "CREATED"];
    rows(&head, &containers.iter().map(row).collect::<Vec<_>>(), json)
}

pub async fn ps(client: &Client, id: &str, json: bool) -> Result<(), String> {
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
        vec![process.pid.to_string(), exec, command]
    };
    rows(
        &["PID", "EXEC", "COMMAND"],
        &pids.iter().map(row).collect::<Vec<_>>(),
        json,
    )
}

pub async fn inspect(client: &Client, id: &str) -> Result<(), String> {
    let container = control::container(client, id).await?;
    let task = control::state(client, id).await.ok();
    let spec = container.spec.as_ref().map_or(&[][..], |spec| &spec.value);
    let object = json!({
        "id": container.id,
        "labels": container.labels,
        "runtime": container.runtime.as_ref().map(|runtime| &runtime.name),
        "created_at": output::time(container.created_at),
        "updated_at": output::time(container.updated_at),
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
        "spec": task::json::read_first::<Value>(spec).ok(),
    });
    line(&serde_json::to_string_pretty(&object).map_err(|e| e.to_string())?)
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

async fn measure(client: &Client) -> Result<(std::time::Instant, Vec<(String, Usage)>), String> {
    let request = client.request(MetricsRequest::default());
    let metrics = client
        .tasks()
        .metrics(request)
        .await
        .map_err(said)?
        .into_inner()
        .metrics;
    let measured = metrics
        .iter()
        .map(|metric| (metric.id.clone(), usage(metric)));
    Ok((std::time::Instant::now(), measured.collect()))
}

/// Live, like top; or once.
pub async fn stats(client: &Client, once: bool, json: bool) -> Result<(), String> {
    let mut before = measure(client).await?;
    loop {
        tokio::time::sleep(EVERY).await;
        let now = measure(client).await?;
        let elapsed = (now.0 - before.0).as_nanos().max(1) as f64;
        let row = |(id, usage): &(String, Usage)| {
            let old = before.1.iter().find(|(of, _)| of == id);
            let used = old.map_or(0, |(_, old)| usage.cpu.saturating_sub(old.cpu));
            let limit = if usage.limit > 1 << 60 {
                "-".into()
            } else {
                size(usage.limit)
            };
            vec![
                id.clone(),
                format!("{:.1}", used as f64 * 100.0 / elapsed),
                size(usage.memory),
                limit,
                usage.pids.to_string(),
                usage.host.map_or("-".into(), size),
            ]
        };
        if !once && !json {
            line("\x1b[H\x1b[2J")?;
        }
        let table: Vec<_> = now.1.iter().map(row).collect();
        rows(
            &["ID", "CPU %", "MEMORY", "LIMIT", "PIDS", "VM MEMORY"],
            &table,
            json,
        )?;
        if once {
            return Ok(());
        }
        before = now;
    }
}

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return format!("{value:.1}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1}GiB")
}

pub async fn version(client: Result<Client, String>, json: bool) -> Result<(), String> {
    let mut table = vec![vec![
        "client".to_owned(),
        crate::VERSION.into(),
        crate::REVISION.into(),
    ]];
    match &client {
        Ok(client) => {
            let answer = client
                .version()
                .version(client.request(()))
                .await
                .map_err(said)?
                .into_inner();
            table.push(vec!["server".into(), answer.version, answer.revision]);
        }
        Err(e) => super::complain(e),
    }
    rows(&["WHO", "VERSION", "REVISION"], &table, json)
}

pub async fn info(client: &Client, json: bool) -> Result<(), String> {
    let server = client
        .introspection()
        .server(client.request(()))
        .await
        .map_err(said)?
        .into_inner();
    let tasks = tasks(client).await?.len();
    let memory = task::proc::text(format!("/proc/{}/status", server.pid)).unwrap_or_default();
    let memory = memory
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or("")
        .trim();
    let table = [
        ("uuid", server.uuid),
        ("pid", server.pid.to_string()),
        ("memory", memory.to_owned()),
        ("tasks", tasks.to_string()),
    ];
    if json {
        let object: serde_json::Map<String, Value> = table
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        return line(&Value::Object(object).to_string());
    }
    table
        .iter()
        .try_for_each(|(key, value)| line(&format!("{key:8} {value}")))
}
