//! Metrics for Prometheus: our counters, and containers' gauges under containerd's names.

use crate::manager::Manager;
use crate::names::Key;
use protos::cgroups::{v1, v2};
use protos::task::{StatsRequest, StatsResponse};
use protos::{Any, Message, any, vm};
use std::fmt::Write;
use std::path::Path;
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

/// Serves metrics, if an address is configured.
///
/// # Errors
/// A text with the address.
pub async fn serve(manager: &Rc<Manager>) -> Result<(), String> {
    let address = manager.config.metrics.address.clone();
    if address.is_empty() {
        return Ok(());
    }
    let manager = Rc::clone(manager);
    if address.starts_with('/') {
        let made = crate::sockets::make_way(Path::new(&address));
        made.map_err(|e| format!("metrics.address: {e}"))?;
        if let Some(listener) = listens(UnixListener::bind(&address), &address) {
            let accepted = async move || Ok(listener.accept().await?.0);
            spawn_local(answer_all(manager, accepted));
        }
    } else if let Some(listener) = listens(TcpListener::bind(&address).await, &address) {
        let accepted = async move || Ok(listener.accept().await?.0);
        spawn_local(answer_all(manager, accepted));
    }
    Ok(())
}

/// Containers matter more than their numbers: the daemon goes on without an address for them.
fn listens<L>(bound: std::io::Result<L>, address: &str) -> Option<L> {
    let refused = |e| log::warn!("metrics.address {address:?}: {e}: there are no metrics");
    bound.map_err(refused).ok()
}

/// Answers whoever is accepted, for ever.
async fn answer_all<S>(manager: Rc<Manager>, accepted: impl AsyncFn() -> std::io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let turns = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let turn = Arc::clone(&turns).acquire_owned().await;
        match accepted().await {
            Ok(stream) => drop(spawn_local(answer(Rc::clone(&manager), stream, turn))),
            // Out of files, most likely: that passes.
            Err(e) => {
                log::warn!("metrics: accept: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// `turn` ends with it.
async fn answer<T>(manager: Rc<Manager>, mut stream: impl AsyncRead + AsyncWrite + Unpin, turn: T) {
    let exchange = async {
        let mut request = Vec::new();
        let mut part = [0; 512];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
            match stream.read(&mut part).await {
                Ok(n @ 1..) => request.extend_from_slice(&part[..n]),
                _ => break,
            }
        }
        let text = text(&manager).await;
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n";
        let answer = format!("{head}Content-Length: {}\r\n\r\n{text}", text.len());
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    };
    let _ = tokio::time::timeout(TIMEOUT, exchange).await;
    drop(turn);
}

/// Families in the order they are first told of.
#[derive(Default)]
struct Families(Vec<(String, &'static str, String)>);

impl Families {
    fn add(&mut self, name: &str, kind: &'static str, labels: &str, value: impl std::fmt::Display) {
        let at = self
            .0
            .iter()
            .position(|(of, ..)| of == name)
            .unwrap_or_else(|| {
                self.0.push((name.to_owned(), kind, String::new()));
                self.0.len() - 1
            });
        let labels = match labels {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        let _ = writeln!(self.0[at].2, "{name}{labels} {value}");
    }

    fn text(self) -> String {
        let families = self.0.into_iter();
        families
            .map(|(name, kind, lines)| format!("# TYPE {name} {kind}\n{lines}"))
            .collect()
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
    for (name, value) in [
        ("dunnage_events_received_total", counters.received.get()),
        ("dunnage_events_duplicate_total", counters.duplicates.get()),
        ("dunnage_events_conflicting_total", counters.conflicts.get()),
        ("dunnage_subscribers_behind_total", exchange.behind.get()),
        ("dunnage_events_delivered_total", exchange.delivered.get()),
        ("dunnage_events_replayed_total", exchange.replayed.get()),
        ("dunnage_oom_total", counters.ooms.get()),
        ("dunnage_shim_deaths_total", manager.deaths.get()),
        ("dunnage_restarts_total", manager.restarts.get()),
        ("dunnage_journal_records_total", manager.intake.last()),
    ] {
        families.add(name, "counter", "", value);
    }
    families.add("dunnage_subscribers", "gauge", "", exchange.subscribers());
    for (origin, count) in counters.exits.borrow().iter() {
        let labels = format!("origin=\"{origin}\"");
        families.add("dunnage_exits_total", "counter", &labels, count);
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
        families.add(
            "dunnage_tasks",
            "gauge",
            &format!("namespace=\"{namespace}\""),
            count,
        );
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
    let mut gauge = |name: &str, value: u64| families.add(name, "gauge", labels, value);
    if let Some(Ok(stats)) = any::unpack::<v1::Metrics>(stats) {
        if let Some(usage) = stats.memory.and_then(|memory| memory.usage) {
            gauge("container_memory_usage_usage_bytes", usage.usage);
            gauge("container_memory_usage_limit_bytes", usage.limit);
            gauge("container_memory_usage_max_bytes", usage.max);
        }
        if let Some(usage) = stats.cpu.and_then(|cpu| cpu.usage) {
            gauge("container_cpu_total_nanoseconds", usage.total);
            gauge("container_cpu_kernel_nanoseconds", usage.kernel);
            gauge("container_cpu_user_nanoseconds", usage.user);
        }
        if let Some(pids) = stats.pids {
            gauge("container_pids_current", pids.current);
            gauge("container_pids_limit", pids.limit);
        }
    } else if let Some(Ok(stats)) = any::unpack::<v2::Metrics>(stats) {
        if let Some(memory) = stats.memory {
            gauge("container_memory_usage_bytes", memory.usage);
            gauge("container_memory_usage_limit_bytes", memory.usage_limit);
        }
        if let Some(cpu) = stats.cpu {
            gauge("container_cpu_usage_usec_microseconds", cpu.usage_usec);
            gauge("container_cpu_user_usec_microseconds", cpu.user_usec);
            gauge("container_cpu_system_usec_microseconds", cpu.system_usec);
        }
        if let Some(pids) = stats.pids {
            gauge("container_pids_current", pids.current);
            gauge("container_pids_limit", pids.limit);
        }
    }
    if let Ok(vm::Metrics { host: Some(host) }) = vm::Metrics::decode(stats.value.as_slice()) {
        host_of_vm(families, labels, host);
    }
}

/// What a container's VM costs the host, by the VM's processes.
fn host_of_vm(families: &mut Families, labels: &str, host: vm::Host) {
    for (name, process) in [
        ("vmm", host.vmm),
        ("files", host.files),
        ("shim", host.shim),
    ] {
        let Some(process) = process else { continue };
        let labels = format!("{labels},process=\"{name}\"");
        families.add("dunnage_vm_memory_bytes", "gauge", &labels, process.memory);
        families.add(
            "dunnage_vm_cpu_microseconds_total",
            "counter",
            &labels,
            process.cpu_usec,
        );
    }
}
