// SPDX-License-Identifier: Apache-2.0
//! `ctr events`: what containerd tells the world, in the order in which it tells it.

use super::ctr::Ctr;
use super::{Containerd, DEADLINE};
use serde_json::Value;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// An event of a task.
#[derive(Clone, Debug)]
pub struct Event {
    /// `create`, `start`, `exit`, …: the topic without `/tasks/`.
    pub topic: String,
    pub container: String,
    /// Empty if it is about the container's init.
    pub exec: String,
    pub pid: i32,
    /// Of `exit` and `delete`.
    pub status: Option<u32>,
}

/// `exit web/e1 6`
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.topic, self.container)?;
        if !self.exec.is_empty() {
            write!(f, "/{}", self.exec)?;
        }
        self.status.map_or(Ok(()), |status| write!(f, " {status}"))
    }
}

pub struct Events {
    ctr: Ctr,
    marks: AtomicU32,
}

impl Events {
    /// containerd does not say when a subscription has begun: marks are sent until one comes.
    pub(super) fn subscribe(containerd: &Containerd) -> Self {
        let it = Self {
            ctr: containerd.spawn(&["events"]),
            marks: AtomicU32::new(0),
        };
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            let mark = it.mark(containerd);
            let came = |text: &str| text.contains(&mark).then_some(());
            if it
                .ctr
                .stdout
                .wait_briefly(Duration::from_millis(100), came)
                .is_some()
            {
                return it;
            }
        }
        panic!("no events from `ctr events`: {}", it.ctr.stderr.text());
    }

    /// Makes containerd publish something that is no shim's; returns what to look for.
    fn mark(&self, containerd: &Containerd) -> String {
        let mark = format!("mark-{}.", self.marks.fetch_add(1, Ordering::Relaxed));
        let label = format!("mark={mark}");
        containerd
            .ctr(&["namespaces", "label", containerd.namespace(), &label])
            .ok();
        mark
    }

    /// Waits until `enough` is true of all events so far, and returns these.
    #[track_caller]
    pub fn until(&self, what: &str, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
        self.ctr.stdout.wait_for(&format!("event {what}"), |text| {
            let events = parse(text);
            enough(&events).then_some(events)
        })
    }

    /// Waits for one event, e.g. `exit web 0`, and returns it and all before it.
    #[track_caller]
    pub fn until_seen(&self, wanted: &str) -> Vec<Event> {
        self.until(wanted, |events| {
            events.iter().any(|event| event.to_string() == wanted)
        })
    }

    /// Everything that was published before now.
    #[track_caller]
    pub fn so_far(&self, containerd: &Containerd) -> Vec<Event> {
        let mark = self.mark(containerd);
        self.ctr.stdout.wait_for("a mark among the events", |text| {
            text.contains(&mark)
                .then(|| parse(text.split_once(&mark).expect("it is there").0))
        })
    }
}

/// The events of one container, as text.
pub fn of(events: &[Event], container: &str) -> Vec<String> {
    let events = events.iter().filter(|event| event.container == container);
    events.map(Event::to_string).collect()
}

/// Whole lines `<date> <time> <zone> <zone> <namespace> <topic> <json>`.
fn parse(text: &str) -> Vec<Event> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Event> {
    let (head, body) = line.split_once(" {")?;
    let topic = head.rsplit(' ').next()?.strip_prefix("/tasks/")?.to_owned();
    let body: Value = serde_json::from_str(&format!("{{{body}"))
        .unwrap_or_else(|e| panic!("line of ctr events: {line}: {e}"));
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| body[key].as_u64().unwrap_or_default() as u32;
    let container = text("container_id");
    let mut exec = text("exec_id");
    if topic == "exit" && text("id") != container {
        exec = text("id");
    }
    // A zero is left out of the JSON.
    let status = matches!(topic.as_str(), "exit" | "delete").then(|| number("exit_status"));
    Some(Event {
        topic,
        container,
        exec,
        pid: number("pid") as i32,
        status,
    })
}
