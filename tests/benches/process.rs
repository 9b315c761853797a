// SPDX-License-Identifier: Apache-2.0
//! What a process has cost so far, and what it holds, by /proc and its memory cgroup.

use harness::proc;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// CPU time of a process and all its threads, in seconds: utime and stime of proc(5).
pub fn cpu(pid: i32) -> f64 {
    ticks(pid, [11, 12])
}

/// And of the children that it has waited for, with theirs: cutime and cstime.
pub fn cpu_with_children(pid: i32) -> f64 {
    cpu(pid) + ticks(pid, [13, 14])
}

/// Two of the fields of /proc/PID/stat after the name, in seconds.
fn ticks(pid: i32, places: [usize; 2]) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    places.into_iter().map(ticks).sum::<f64>() / 100.0
}

/// A line of smaps_rollup, in KiB.
fn rollup(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// `{rss, pss, private_dirty}` in KiB, and `{threads, fds}`.
pub fn held(pid: i32) -> Value {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    json!({
        "rss": rollup(&text, "Rss"),
        "pss": rollup(&text, "Pss"),
        "private_dirty": rollup(&text, "Private_Dirty"),
        "threads": proc::stat(pid).map_or(0, |stat| stat.threads),
        "fds": proc::fds(pid).map_or(0, |fds| fds.len()),
    })
}

/// A memory cgroup that shims are put into, v1 or v2; removed with [`Group::remove`].
pub struct Group(pub PathBuf);

/// What a memory cgroup is charged for, in KiB, without page cache: that is shared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Charged {
    pub user: f64,
    pub kernel: f64,
}

impl Charged {
    pub fn all(self) -> f64 {
        self.user + self.kernel
    }

    /// The growth since `before`, for each of `count` shims.
    pub fn each(self, before: Self, count: usize) -> Value {
        let count = count as f64;
        json!({
            "all": (self.all() - before.all()) / count,
            "user": (self.user - before.user) / count,
            "kernel": (self.kernel - before.kernel) / count,
        })
    }
}

impl Group {
    pub fn new(name: &str) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let root = if v1.join("memory.stat").exists() {
            v1
        } else {
            Path::new("/sys/fs/cgroup")
        };
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        Self(dir)
    }

    pub fn charged(&self) -> Charged {
        let read = |file: &str| fs::read_to_string(self.0.join(file)).unwrap_or_default();
        let stat = read("memory.stat");
        let line = |key: &str| {
            let value = stat.lines().find_map(|line| line.strip_prefix(key));
            value.and_then(|v| v.trim().parse::<f64>().ok())
        };
        let bytes = match line("total_rss ") {
            Some(user) => (
                user,
                read("memory.kmem.usage_in_bytes")
                    .trim()
                    .parse()
                    .unwrap_or(0.0),
            ),
            None => (line("anon ").unwrap_or(0.0), line("kernel ").unwrap_or(0.0)),
        };
        Charged {
            user: bytes.0 / 1024.0,
            kernel: bytes.1 / 1024.0,
        }
    }
}
