// SPDX-License-Identifier: Apache-2.0
//! Metrics for Prometheus: our counters, and containers' gauges under containerd's names.

use crate::manager::Manager;
use crate::names::Key;
use protos::cgroups::{v1, v2};
use protos::task::{StatsRequest, StatsResponse};
use protos::{Any, Message, any, vm};
use std::fmt::Write;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

/// How long a client may take, and how long a shim.
const TIMEOUT: Duration = Duration::from_secs(10);
const STATS_TIMEOUT: Duration = Duration::from_secs(2);
/// How many clients are served at once; others wait.
const CLIENTS: usize = 16;
/// The longest request that is read.
const MAX_REQUEST: usize = 8192;

const MEMORY: &str = "Memory that the container uses.";
const MEMORY_LIMIT: &str = "The most memory that it may use.";
const CPU: &str = "Processor time that it has used.";
const CPU_KERNEL: &str = "Processor time that the kernel has used for it.";
const CPU_USER: &str = "Processor time that its programs have used.";
const PIDS: &str = "Processes and threads that it has.";
const PIDS_LIMIT: &str = "So many it may have; 0 is no limit.";

/// Serves metrics, if an address is configured.
///
/// # Errors
/// A text with the address.
pub async fn serve(manager: &Rc<Manager>) -> Result<(), String> {
    let address = manager.config.metrics.address.clone();
    if address.is_empty() {
        return Ok(());
    }
    if address.starts_with('/') {
        let made = crate::sockets::make_way(Path::new(&address));
        made.map_err(|e| format!("metrics.address: {e}"))?;
    }
    let manager = Rc::clone(manager);
    let page: Page = Rc::new(move || {
        let manager = Rc::clone(&manager);
        Box::pin(async move { text(&manager).await })
    });
    // Containers matter more than their numbers: the daemon goes on without an address for them.
    if let Err(e) = listen(&address, page).await {
        log::warn!("metrics.address {address:?}: {e}: there are no metrics");
    }
    Ok(())
}

/// Makes the text that is told whenever somebody asks.
pub type Page = Rc<dyn Fn() -> Pin<Box<dyn Future<Output = String>>>>;

/// Answers with `page` from now on whoever asks at `address`, `HOST:PORT` or a path.
///
/// # Errors
/// If it can't be listened at.
pub async fn listen(address: &str, page: Page) -> std::io::Result<()> {
    if address.starts_with('/') {
        let listener = UnixListener::bind(address)?;
        let accepted = async move || Ok(listener.accept().await?.0);
        spawn_local(answer_all(page, accepted));
    } else {
        let listener = TcpListener::bind(address).await?;
        let accepted = async move || Ok(listener.accept().await?.0);
        spawn_local(answer_all(page, accepted));
    }
    Ok(())
}

/// Answers whoever is accepted, for ever.
async fn answer_all<S>(page: Page, accepted: impl AsyncFn() -> std::io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let turns = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let turn = Arc::clone(&turns).acquire_owned().await;
        match accepted().await {
            Ok(stream) => drop(spawn_local(answer(Rc::clone(&page), stream, turn))),
            // Out of files, most likely: that passes.
            Err(e) => {
                log::warn!("metrics: accept: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// `turn` ends with it.
async fn answer<T>(page: Page, mut stream: impl AsyncRead + AsyncWrite + Unpin, turn: T) {
    let exchange = async {
        let mut request = Vec::new();
        let mut part = [0; 512];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
            match stream.read(&mut part).await {
                Ok(n @ 1..) => request.extend_from_slice(&part[..n]),
                _ => break,
            }
        }
        let text = page().await;
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n";
        let answer = format!("{head}Content-Length: {}\r\n\r\n{text}", text.len());
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    };
    let _ = tokio::time::timeout(TIMEOUT, exchange).await;
    drop(turn);
}

/// A family: its name, what it is, and what its numbers mean.
pub type Family = (&'static str, &'static str, &'static str);

/// Families in the order they are first told of, and their lines.
#[derive(Default)]
pub struct Families(Vec<(Family, String)>);

impl Families {
    pub fn add(&mut self, family: Family, labels: &str, value: impl std::fmt::Display) {
        self.add_as(family, "", labels, value);
    }

    /// A line of a family whose name has this ending there, as those of histograms have.
    pub fn add_as(
        &mut self,
        family: Family,
        ending: &str,
        labels: &str,
        value: impl std::fmt::Display,
    ) {
        let known = self.0.iter().position(|(of, _)| *of == family);
        let at = known.unwrap_or_else(|| {
            self.0.push((family, String::new()));
            self.0.len() - 1
        });
        let labels = match labels {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        let _ = writeln!(self.0[at].1, "{}{ending}{labels} {value}", family.0);
    }

    pub fn text(self) -> String {
        let text = |((name, kind, help), lines): (Family, String)| {
            format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}")
        };
        self.0.into_iter().map(text).collect()
    }
}

async fn text(manager: &Rc<Manager>) -> String {
    let mut families = Families::default();
    count_events(&mut families, manager);
    measure_tasks(&mut families, manager).await;
    families.text()
}

fn count_events(families: &mut Families, manager: &Manager) {
    let counters = &manager.intake.counters;
    let exchange = &manager.intake.exchange;
    #[rustfmt::skip]
    let counts = [
        ("dunnage_events_received_total", "Events that were sent here.", counters.received.get()),
        ("dunnage_events_duplicate_total", "Exits told again.", counters.duplicates.get()),
        ("dunnage_events_conflicting_total", "Exits told otherwise.", counters.conflicts.get()),
        ("dunnage_subscribers_behind_total", "Subscribers too slow to stay.", exchange.behind.get()),
        ("dunnage_events_delivered_total", "Events given to subscribers.", exchange.delivered.get()),
        ("dunnage_events_replayed_total", "Exits given later.", exchange.replayed.get()),
        ("dunnage_oom_total", "Times that a container had no memory left.", counters.ooms.get()),
        ("dunnage_shim_deaths_total", "Shims that died before their task.", manager.deaths.get()),
        ("dunnage_restarts_total", "Restarts by a policy.", manager.restarts.count.get()),
        ("dunnage_journal_records_total", "Records ever written.", manager.intake.last()),
    ];
    for (name, help, value) in counts {
        families.add((name, "counter", help), "", value);
    }
    let subscribers = (
        "dunnage_subscribers",
        "gauge",
        "Subscribers that are there.",
    );
    families.add(subscribers, "", exchange.subscribers());
    let exits = (
        "dunnage_exits_total",
        "counter",
        "Exits of processes, by who saw them.",
    );
    for (origin, count) in counters.exits.borrow().iter() {
        families.add(exits, &format!("origin=\"{origin}\""), count);
    }
}

async fn measure_tasks(families: &mut Families, manager: &Rc<Manager>) {
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    let mut asked = Vec::new();
    for task in manager.tasks.all() {
        *counts.entry(task.key().namespace.clone()).or_default() += 1;
        let Some(shim) = task.shim() else { continue };
        let manager = Rc::clone(manager);
        asked.push(spawn_local(async move {
            let request = StatsRequest {
                id: task.id().to_owned(),
            };
            let stats = shim.call(&request, Some(STATS_TIMEOUT)).await;
            // A label is not worth waiting for a disk that stands still.
            let Key { namespace, id } = task.key();
            let record = manager.store.container(namespace, id);
            let record = tokio::time::timeout(STATS_TIMEOUT, record).await;
            let record = record.ok().and_then(Result::ok).unwrap_or_default();
            let runtime = record.runtime.unwrap_or_default().name;
            (task, runtime, stats)
        }));
    }
    for (namespace, count) in counts {
        let tasks = ("dunnage_tasks", "gauge", "Tasks that are there.");
        families.add(tasks, &format!("namespace=\"{namespace}\""), count);
    }
    for answer in asked {
        if let Ok((task, runtime, Ok(StatsResponse { stats: Some(stats) }))) = answer.await {
            let Key { namespace, id } = task.key();
            let labels = format!("container_id={id:?},namespace={namespace:?},runtime={runtime:?}");
            container(families, &labels, &stats);
        }
    }
}

/// core/metrics/cgroups/v1 and v2: the names that containerd's dashboards know.
fn container(families: &mut Families, labels: &str, stats: &Any) {
    let mut gauge = |name, help, value: u64| families.add((name, "gauge", help), labels, value);
    if let Some(Ok(stats)) = any::unpack::<v1::Metrics>(stats) {
        if let Some(usage) = stats.memory.and_then(|memory| memory.usage) {
            gauge("container_memory_usage_usage_bytes", MEMORY, usage.usage);
            gauge(
                "container_memory_usage_limit_bytes",
                MEMORY_LIMIT,
                usage.limit,
            );
            let most = "The most memory that was in use.";
            gauge("container_memory_usage_max_bytes", most, usage.max);
        }
        if let Some(usage) = stats.cpu.and_then(|cpu| cpu.usage) {
            gauge("container_cpu_total_nanoseconds", CPU, usage.total);
            gauge("container_cpu_kernel_nanoseconds", CPU_KERNEL, usage.kernel);
            gauge("container_cpu_user_nanoseconds", CPU_USER, usage.user);
        }
        if let Some(pids) = stats.pids {
            gauge("container_pids_current", PIDS, pids.current);
            gauge("container_pids_limit", PIDS_LIMIT, pids.limit);
        }
    } else if let Some(Ok(stats)) = any::unpack::<v2::Metrics>(stats) {
        if let Some(memory) = stats.memory {
            gauge("container_memory_usage_bytes", MEMORY, memory.usage);
            gauge(
                "container_memory_usage_limit_bytes",
                MEMORY_LIMIT,
                memory.usage_limit,
            );
        }
        if let Some(cpu) = stats.cpu {
            gauge("container_cpu_usage_usec_microseconds", CPU, cpu.usage_usec);
            gauge(
                "container_cpu_user_usec_microseconds",
                CPU_USER,
                cpu.user_usec,
            );
            gauge(
                "container_cpu_system_usec_microseconds",
                CPU_KERNEL,
                cpu.system_usec,
            );
        }
        if let Some(pids) = stats.pids {
            gauge("container_pids_current", PIDS, pids.current);
            gauge("container_pids_limit", PIDS_LIMIT, pids.limit);
        }
    }
    if let Ok(vm::Metrics { host: Some(host) }) = vm::Metrics::decode(stats.value.as_slice()) {
        host_of_vm(families, labels, host);
    }
}

/// What a container's VM costs the host, by the VM's processes.
fn host_of_vm(families: &mut Families, labels: &str, host: vm::Host) {
    const VM_MEMORY: &str = "Memory of a process of the container's VM.";
    const VM_CPU: &str = "Processor time of a process of the container's VM.";
    for (name, process) in [
        ("vmm", host.vmm),
        ("files", host.files),
        ("shim", host.shim),
    ] {
        let Some(process) = process else { continue };
        let labels = format!("{labels},process=\"{name}\"");
        let memory = ("dunnage_vm_memory_bytes", "gauge", VM_MEMORY);
        families.add(memory, &labels, process.memory);
        let cpu = ("dunnage_vm_cpu_microseconds_total", "counter", VM_CPU);
        families.add(cpu, &labels, process.cpu_usec);
    }
}
