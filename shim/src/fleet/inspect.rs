// SPDX-License-Identifier: Apache-2.0
//! The `inspect` command: tells what running shims do and wait for, and why something takes long.

use super::look::{Kin, Process, Sleeper};
use super::{Daemon, ask, ask_all, daemons};
use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::inspect::{OfCall, Report};
use crate::runtime;
use protos::operator::{InspectRequest, InspectResponse};
use protos::{Code, Status};
use serde::Serialize;
use std::collections::HashSet;
use std::time::Duration;
use task::look::{OfMemory, OfProcess};

/// How long one shim may take: it answers at once, or is stuck itself.
const TIMEOUT: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 256;
/// What takes longer has a cause, in seconds.
const LONG: f64 = 1.0;
/// What a call says that waits behind another of its process.
const TURN: &str = "its turn";

/// What is told of one shim.
#[derive(Serialize)]
struct Told {
    /// Why it said nothing itself.
    error: Option<String>,
    /// Sentences: what takes long, and what it waits for.
    causes: Vec<String>,
    process: Process,
    #[serde(flatten)]
    report: Report,
}

/// Tells of every shim called `program` that `filter` names: as text, or as a JSON object on a line of
/// its own for each.
///
/// # Errors
/// If there is none although an id was named.
pub fn inspect(program: &str, filter: &Flags) -> Result<()> {
    let daemons = daemons(program, filter)?;
    if daemons.is_empty() && !filter.id.is_empty() {
        return Err(Error::new(format!("no shim of {:?} runs", filter.id)));
    }
    let asking = ask_all(daemons, AT_ONCE, |pid| ask(pid, InspectRequest {}, TIMEOUT));
    let answers = runtime()?.block_on(asking)?;
    let kin = Kin::look();
    let mut all = String::new();
    for (daemon, answer) in answers {
        let told = Told::new(daemon, answer, &kin);
        if filter.json {
            let json = serde_json::to_string(&told).map_err(|e| Error::new(e.to_string()))?;
            all += &json;
            all.push('\n');
        } else {
            all += &told.text();
        }
    }
    crate::print(task::printable(&all).as_bytes())
}

impl Told {
    fn new(
        daemon: Daemon,
        answer: std::result::Result<InspectResponse, Status>,
        kin: &Kin,
    ) -> Self {
        let read = |answer: InspectResponse| {
            let report = serde_json::from_slice::<Report>(&answer.report);
            report.map_err(|e| format!("its report: {e}"))
        };
        let report = answer.map_err(why).and_then(read);
        let (mut report, error) = match report {
            Ok(report) => (report, None),
            Err(e) => (Report::default(), Some(e)),
        };
        // Who it is its own command line says.
        (report.namespace, report.id) = (daemon.flags.namespace, daemon.flags.id);
        report.pid = daemon.pid;
        let process = kin.of(daemon.pid);
        let mut told = Self {
            error,
            causes: Vec::new(),
            process,
            report,
        };
        told.causes = told.find_causes();
        told
    }

    /// Children that are no container's: runtimes, loggers, the parts of a VM.
    fn helpers(&self) -> Vec<&Sleeper> {
        let containers = self.report.engine.containers.iter();
        let pids = containers.flat_map(|it| it.processes.iter().map(|process| process.pid));
        let pids: HashSet<u32> = pids.collect();
        // Without a report a container's process cannot be told from another.
        let children = self.process.children.iter();
        children
            .filter(|child| !pids.contains(&child.pid))
            .collect()
    }

    fn find_causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        if let Some(error) = &self.error {
            causes.push(format!("the shim itself tells nothing: {error}"));
        }
        let long = |call: &&OfCall| !call.only_waits && call.seconds >= LONG;
        for call in self.report.calls.iter().filter(long) {
            let gone = if call.answered {
                ", though its caller waits no longer"
            } else {
                ""
            };
            causes.push(format!(
                "{} has gone on for {}{gone}: it waits for {}",
                named(call),
                time(call.seconds),
                self.what_for(call)
            ));
        }
        for container in &self.report.engine.containers {
            let processes = container.processes.iter();
            causes.extend(processes.flat_map(|process| stuck(&container.id, process)));
        }
        let events = &self.report.engine.events;
        if events.waiting > 0 && events.oldest_seconds as f64 >= LONG {
            causes.push(format!(
                "containerd has not taken {} events, the oldest for {} s",
                events.waiting, events.oldest_seconds
            ));
        }
        causes
    }

    /// What a call waits for, as far as that is to be seen.
    fn what_for(&self, call: &OfCall) -> String {
        let is_its = |child: &&&Sleeper| {
            let mut words = child.command.split(' ');
            let names = |id: &str| child.command.contains(id);
            // What runs longer than the call is nothing that it has started.
            words.any(|word| word == call.container)
                && names(&call.exec)
                && child.seconds <= call.seconds + LONG
        };
        let helpers = self.helpers();
        let is_named = |child: &&&Sleeper| call.waits_for_pid == child.pid;
        let named_first = helpers.iter().find(is_named);
        if let Some(child) = named_first.or_else(|| helpers.iter().find(is_its)) {
            return format!("{} {}{}", program(child), child.pid, where_it_is(child));
        }
        if !call.waits_for.is_empty() && call.waits_for != TURN {
            return call.waits_for.clone();
        }
        let is_before = |other: &&OfCall| {
            other.container == call.container && !other.only_waits && other.seconds > call.seconds
        };
        if let Some(other) = self.report.calls.iter().find(is_before) {
            return format!("its turn behind {}", named(other));
        }
        let threads = &self.process.threads;
        if let Some(thread) = threads.iter().find(|thread| thread.state == 'D') {
            let place = where_it_is(thread);
            return format!("a file system or a device: thread {}{place}", thread.pid);
        }
        if let Some(thread) = threads.iter().find(|thread| is_stuck(thread)) {
            let place = where_it_is(thread);
            return format!("a file: thread {}{place}", thread.pid);
        }
        if self.report.engine.runtime.is_null() {
            "what cannot be seen from outside".into()
        } else {
            "the guest".into()
        }
    }

    fn text(&self) -> String {
        let Report {
            namespace,
            id,
            pid,
            version,
            ..
        } = &self.report;
        let mut text = format!(
            "{namespace}/{id} pid {pid}: for {}, {} KiB, {} threads beside its loop",
            time(self.process.seconds),
            self.process.memory_bytes / 1024,
            self.process.threads.len(),
        );
        if !version.is_empty() {
            text += &format!(", version {version}");
        }
        let causes = self.causes.iter().map(|cause| format!("! {cause}"));
        let lines = causes.chain(self.containers()).chain(self.doings());
        for line in lines {
            text += "\n  ";
            text += &line.replace(['\n', '\t'], " ");
        }
        text + "\n"
    }

    /// A line for each container and each exec.
    fn containers(&self) -> Vec<String> {
        let engine = &self.report.engine;
        let of_process = |id: &str, process: &OfProcess| match process.exec.as_str() {
            "" => format!("container {id}: {}", state(process)),
            exec => format!("  exec {exec}: {}", state(process)),
        };
        let made = engine.containers.iter().flat_map(|container| {
            let processes = container.processes.iter();
            let processes = processes.map(|process| of_process(&container.id, process));
            let memory = container.memory.iter().map(of_memory);
            let killed = container.killed.iter();
            let killed =
                killed.map(|killed| format!("  out of memory, {}: {killed}", ago(killed.at)));
            processes.chain(memory).chain(killed)
        });
        let creating = engine.creating.iter();
        let creating = creating.map(|id| format!("container {id}: is being created"));
        made.chain(creating).collect()
    }

    /// A line for each call, process, thread, and what waits.
    fn doings(&self) -> Vec<String> {
        let engine = &self.report.engine;
        let calls = self.report.calls.iter();
        let mut lines: Vec<String> = calls.map(|call| format!("call {}", about(call))).collect();
        for child in self.helpers() {
            let (place, since) = (where_it_is(child), time(child.seconds));
            let command = short(&child.command);
            lines.push(format!(
                "process {}{place}, for {since}: {command}",
                child.pid
            ));
        }
        for thread in &self.process.threads {
            lines.push(format!("thread {}{}", thread.pid, where_it_is(thread)));
        }
        let events = &engine.events;
        if events.waiting > 0 {
            lines.push(format!(
                "events {}, {} bytes, the oldest for {} s",
                events.waiting, events.bytes, events.oldest_seconds
            ));
        }
        let runtime = engine.runtime.as_object().into_iter().flatten();
        lines.extend(runtime.map(|(key, value)| format!("{key}: {value}")));
        lines
    }
}

fn why(status: Status) -> String {
    match status.code {
        Code::Unimplemented => "it is older than this command, or not ours".into(),
        Code::DeadlineExceeded => "it has not answered within a second".into(),
        _ => status.message,
    }
}

fn named(call: &OfCall) -> String {
    match call.exec.as_str() {
        "" => format!("{} of {}", call.method, call.container),
        exec => format!("{} of {}/{exec}", call.method, call.container),
    }
}

fn about(call: &OfCall) -> String {
    let patience = match (call.answered, call.patience_seconds) {
        (true, _) => "its caller waits no longer".into(),
        (false, Some(left)) => format!("its caller waits {} more", time(left)),
        (false, None) => "its caller waits for ever".into(),
    };
    format!("{}, for {}, {patience}", named(call), time(call.seconds))
}

/// The streams of a process whose client does not read.
fn stuck(container: &str, process: &OfProcess) -> Vec<String> {
    let of = match process.exec.as_str() {
        "" => container.to_owned(),
        exec => format!("{container}/{exec}"),
    };
    let streams = process.streams.iter();
    let stuck = streams.filter(|stream| stream.full_seconds >= Some(LONG));
    stuck
        .map(|stream| {
            format!(
                "nobody reads the output of {of}: FIFO {} has been full for {} with {} bytes, and {} more wait",
                stream.path,
                time(stream.full_seconds.unwrap_or(0.0)),
                stream.unread_bytes,
                stream.waiting_bytes,
            )
        })
        .collect()
}

fn state(process: &OfProcess) -> String {
    let mut said = process.state.clone();
    if process.pid != 0 {
        said += &format!(", pid {}", process.pid);
    }
    if let Some(status) = process.exit_status {
        said += &format!(", exit status {status}");
    }
    if process.busy {
        said += ", an operation is under way";
    }
    said
}

fn of_memory(memory: &OfMemory) -> String {
    let OfMemory { cgroup, room } = memory;
    let kib = |bytes: Option<u64>| bytes.map_or("?".into(), |bytes| (bytes / 1024).to_string());
    let limit = room
        .limit
        .map_or("no limit".into(), |_| kib(room.limit) + " KiB");
    let mut said = format!(
        "  memory {} KiB, {} at most so far, of {limit}",
        kib(room.used),
        kib(room.peak),
    );
    if let Some(kills @ 1..) = room.kills {
        said += &format!(", {kills} killed for want of it");
    }
    if room.group {
        said += ", all at once (memory.oom.group)";
    }
    said + &format!(", in {cgroup}")
}

/// How long ago it was, from a time in seconds since 1970.
fn ago(at: i64) -> String {
    let seconds = task::event::now().seconds.saturating_sub(at);
    format!("{} ago", time(seconds.max(0) as f64))
}

/// A thread that waits in the kernel for more than its next piece of work.
fn is_stuck(thread: &Sleeper) -> bool {
    !thread.wchan.is_empty() && !thread.wchan.starts_with("futex")
}

fn where_it_is(sleeper: &Sleeper) -> String {
    let wchan = match sleeper.wchan.as_str() {
        "" => String::new(),
        wchan => format!(" in {wchan}"),
    };
    format!(", in state {}{wchan}", sleeper.state)
}

/// A command line that people read: its begin, and its end, where a runtime has the container's id.
fn short(command: &str) -> String {
    const ENDS: usize = 80;
    let length = command.chars().count();
    if length <= 2 * ENDS {
        return command.to_owned();
    }
    let begin: String = command.chars().take(ENDS).collect();
    let end: String = command.chars().skip(length - ENDS).collect();
    format!("{begin} … {end}")
}

fn program(child: &Sleeper) -> String {
    let first = child.command.split(' ').next().unwrap_or_default();
    first.rsplit('/').next().unwrap_or_default().to_owned()
}

/// A length of time, as precisely as anybody wants to know.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}
