// SPDX-License-Identifier: Apache-2.0
//! What the kernel tells of a shim's process and its children: also of one that does not answer.

use serde::Serialize;
use std::collections::HashMap;
use std::fs;
use task::proc::{self, Stat};

/// A command line is told up to so many characters. The id of a container is the last of a runtime's.
const LINE: usize = 4096;

/// A thread, or a process.
#[derive(Clone, Debug, Serialize)]
pub struct Sleeper {
    pub pid: u32,
    /// As ps(1) has it: `D` waits for a device or a file system, and no signal reaches it.
    pub state: char,
    /// What it waits for in the kernel, if that is to be known.
    pub wchan: String,
    /// How long it has been there.
    pub seconds: f64,
    /// Empty for a thread.
    pub command: String,
}

/// A shim's process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Process {
    pub seconds: f64,
    /// What is its own of memory, and its part of what it shares with others, in bytes.
    pub memory_bytes: u64,
    /// Beside the loop.
    pub threads: Vec<Sleeper>,
    /// In the order in which they were started.
    pub children: Vec<Sleeper>,
}

/// Who is whose child, when this was made.
pub struct Kin {
    children: HashMap<u32, Vec<u32>>,
    uptime: f64,
}

impl Kin {
    pub fn look() -> Self {
        let mut children = HashMap::<u32, Vec<u32>>::new();
        for pid in proc::all().into_iter().flatten() {
            if let Some(parent) = proc::parent(pid) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let uptime = proc::text("/proc/uptime").unwrap_or_default();
        let uptime = uptime.split(' ').next().and_then(|text| text.parse().ok());
        Self {
            children,
            uptime: uptime.unwrap_or(0.0),
        }
    }

    /// Of the process `pid`; what cannot be read is left out.
    pub fn of(&self, pid: u32) -> Process {
        let children = self.children.get(&pid).into_iter().flatten();
        let mut children: Vec<Sleeper> = children
            .filter_map(|&child| self.sleeper(child, format!("/proc/{child}")))
            .collect();
        for child in &mut children {
            let line = proc::command_line(child.pid).join(" ");
            child.command = line.chars().take(LINE).collect();
        }
        children.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        let tasks = tasks.into_iter().flatten().filter_map(|task| {
            let number: u32 = task.ok()?.file_name().to_str()?.parse().ok()?;
            (number != pid).then_some(number)
        });
        Process {
            seconds: proc::stat(pid).map_or(0.0, |stat| self.seconds(stat)),
            memory_bytes: memory(pid).unwrap_or(0),
            threads: tasks
                .filter_map(|task| self.sleeper(task, format!("/proc/{pid}/task/{task}")))
                .collect(),
            children,
        }
    }

    fn sleeper(&self, pid: u32, dir: String) -> Option<Sleeper> {
        let stat = proc::stat_of(format!("{dir}/stat"))?;
        let wchan = proc::text(format!("{dir}/wchan")).unwrap_or_default();
        Some(Sleeper {
            pid,
            state: stat.state.into(),
            wchan: if wchan == "0" { String::new() } else { wchan },
            seconds: self.seconds(stat),
            command: String::new(),
        })
    }

    fn seconds(&self, stat: Stat) -> f64 {
        // A hundred ticks make a second, whatever the kernel counts in (proc(5), USER_HZ).
        (self.uptime - stat.started as f64 / 100.0).max(0.0)
    }
}

fn memory(pid: u32) -> Option<u64> {
    let rollup = proc::text(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
