// SPDX-License-Identifier: Apache-2.0
//! What the kernel's log says of processes that it has killed for want of memory (mm/oom_kill.c).
//!
//! ```text
//!  <level>,<number>,<microseconds after boot>,-;oom-kill:constraint=CONSTRAINT_MEMCG,...,
//!      oom_memcg=<what had no memory left>,task_memcg=<where it was>,task=<name>,pid=<pid>,uid=<uid>
//!  ...;Memory cgroup out of memory: Killed process <pid> (<name>) total-vm:...
//!  ...;Tasks in <cgroup> are going to be killed due to memory.oom.group set
//! ```
//!
//! The first is left out when there are too many, the second never.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

const LOG: &str = "/dev/kmsg";
/// A record is not longer (kernel: PRINTK_MESSAGE_MAX), in bytes.
const RECORD: usize = 8192;
/// So many records are read at most; a log of 1 MiB has a tenth of them.
const MOST_RECORDS: usize = 100_000;
/// Of the kills that are found so many are kept, the last ones.
pub const MOST_KILLS: usize = 16;

/// A process that was killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kill {
    /// In the pid namespace of the machine.
    pub pid: u32,
    pub program: String,
    /// The cgroup that it was in, and the one that had no memory left, by their paths in the hierarchy;
    /// the first is empty if the log does not say, the second, too, if it was the whole machine.
    pub cgroup: String,
    pub exhausted: String,
    /// All of its cgroup was killed with it (memory.oom.group).
    pub with_group: bool,
}

/// A place in the log, behind which something is looked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct After {
    /// The number of the last record that was read.
    pub number: u64,
    /// In microseconds after boot.
    pub time: u64,
}

/// The kills that the log has of processes for which `is_wanted`, and the number of its last record.
///
/// # Errors
/// If there is no log to be read.
pub fn kills(after: After, is_wanted: impl Fn(&Kill) -> bool) -> io::Result<(Vec<Kill>, u64)> {
    let mut options = File::options();
    let mut log = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(LOG)?;
    let mut reader = Reader::new(after);
    let mut record = [0; RECORD];
    for _ in 0..MOST_RECORDS {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(n) => reader.read(&String::from_utf8_lossy(&record[..n]), &is_wanted),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            // It was overwritten before it was read.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((reader.found, reader.last))
}

/// Reads record after record.
struct Reader {
    after: After,
    last: u64,
    /// What was said of the process that is killed next.
    said: Option<Kill>,
    /// Those that follow are of a group.
    in_group: Option<Kill>,
    found: Vec<Kill>,
}

impl Reader {
    fn new(after: After) -> Self {
        Self {
            after,
            last: after.number,
            said: None,
            in_group: None,
            found: Vec::new(),
        }
    }

    fn read(&mut self, record: &str, is_wanted: impl Fn(&Kill) -> bool) {
        let Some((head, text)) = record.split_once(';') else {
            return;
        };
        // Further lines are what the record is about.
        let text = text.lines().next().unwrap_or_default();
        let mut head = head.split(',').map(|field| field.parse::<u64>().ok());
        let mut next = || head.next().flatten();
        let (Some(level), Some(number), Some(time)) = (next(), next(), next()) else {
            return;
        };
        self.last = self.last.max(number);
        // Others may write there, too, but not in the kernel's name (syslog(2), LOG_KERN).
        if level >> 3 != 0 || number <= self.after.number || time < self.after.time {
            return;
        }
        if let Some(said) = text.strip_prefix("oom-kill:") {
            self.said = victim(said);
            self.in_group = None;
        } else if text.contains(" are going to be killed due to memory.oom.group set") {
            self.in_group = self.found.last().cloned().or_else(|| self.said.clone());
            if let Some(first) = self.found.last_mut() {
                first.with_group = true;
            }
        } else if let Some(kill) = killed(text) {
            let kill = self.complete(kill);
            if is_wanted(&kill) {
                if self.found.len() == MOST_KILLS {
                    self.found.remove(0);
                }
                self.found.push(kill);
            }
        }
    }

    /// With what was said of it before.
    fn complete(&mut self, kill: Kill) -> Kill {
        match (self.said.take(), &self.in_group) {
            (Some(said), _) if said.pid == kill.pid => said,
            (_, Some(first)) => Kill {
                pid: kill.pid,
                program: kill.program,
                with_group: true,
                ..first.clone()
            },
            _ => kill,
        }
    }
}

/// `constraint=...,oom_memcg=/a,task_memcg=/a/b,task=name,pid=1,uid=0`. Names may hold anything; what
/// the kernel wrote last is looked for from the end.
fn victim(text: &str) -> Option<Kill> {
    let (text, _) = text.rsplit_once(",uid=")?;
    let (text, pid) = text.rsplit_once(",pid=")?;
    let (text, program) = text.rsplit_once(",task=")?;
    let (text, cgroup) = text.split_once(",task_memcg=")?;
    let exhausted = text.split_once(",oom_memcg=").map(|(_, path)| path);
    Some(Kill {
        pid: pid.parse().ok()?,
        program: program.to_owned(),
        cgroup: cgroup.to_owned(),
        exhausted: exhausted.unwrap_or_default().to_owned(),
        with_group: false,
    })
}

fn killed(text: &str) -> Option<Kill> {
    let (_, said) = text.split_once("Killed process ")?;
    let (pid, said) = said.split_once(" (")?;
    let (program, _) = said.rsplit_once(')')?;
    Some(Kill {
        pid: pid.parse().ok()?,
        program: program.to_owned(),
        ..Kill::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "6,341,326639469,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,\
        mems_allowed=0,oom_memcg=/pod,task_memcg=/pod/c,task=tail,pid=16984,uid=0\n";
    const KILLED: &str = "3,342,326639500,-;Memory cgroup out of memory: Killed process 16984 (tail) \
        total-vm:19076kB, anon-rss:16256kB, file-rss:1696kB, shmem-rss:0kB, UID:0 pgtables:80kB \
        oom_score_adj:0\n SUBSYSTEM=x\n";

    fn found(after: After, records: &[&str]) -> Vec<Kill> {
        let mut reader = Reader::new(after);
        for record in records {
            reader.read(record, |_| true);
        }
        reader.found
    }

    fn tail() -> Kill {
        Kill {
            pid: 16984,
            program: "tail".into(),
            cgroup: "/pod/c".into(),
            exhausted: "/pod".into(),
            with_group: false,
        }
    }

    #[test]
    fn a_kill_is_told_with_its_cgroups() {
        let all = After::default();
        assert_eq!(found(all, &[SAID, KILLED]), [tail()]);
        let alone = Kill {
            pid: 16984,
            program: "tail".into(),
            ..Kill::default()
        };
        assert_eq!(found(all, &[KILLED]), [alone]);
        let later = |number, time| found(After { number, time }, &[SAID, KILLED]);
        assert_eq!(later(342, 0), []);
        assert_eq!(later(0, 400_000_000), []);
        assert_eq!(later(340, 1), [tail()]);
    }

    #[test]
    fn a_group_is_killed_as_a_whole() {
        let group = "6,343,326639600,-;Tasks in /pod/c are going to be killed due to memory.oom.group set\n";
        let other = KILLED
            .replace("342", "344")
            .replace("16984 (tail)", "7 (sh)");
        let kills = found(After::default(), &[SAID, KILLED, group, &other]);
        let programs: Vec<_> = kills.iter().map(|kill| kill.program.as_str()).collect();
        assert_eq!(programs, ["tail", "sh"]);
        assert!(
            kills
                .iter()
                .all(|kill| kill.with_group && kill.cgroup == "/pod/c")
        );
    }

    /// A process may be called what it likes, and anybody with the right may write into the log.
    #[test]
    fn names_and_strangers_do_not_mislead() {
        let name = "a) b,pid=1 (";
        let said = SAID.replace("task=tail", &format!("task={name}"));
        let killed = KILLED.replace("tail", name);
        let kills = found(After::default(), &[&said, &killed]);
        assert_eq!((kills[0].pid, kills[0].program.as_str()), (16984, name));
        let forged = [SAID.replacen('6', "14", 1), KILLED.replacen('3', "11", 1)];
        assert_eq!(found(After::default(), &[&forged[0], &forged[1]]), []);
        for nonsense in [
            "",
            ";",
            "6,1,2,-;oom-kill:",
            "6,1,2;Killed process x (y",
            "x;y",
        ] {
            assert_eq!(found(After::default(), &[nonsense]), []);
        }
    }
}
