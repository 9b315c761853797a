// SPDX-License-Identifier: Apache-2.0
//! Metrics of shims for Prometheus, out of what they tell of themselves.

use crate::metrics::{Families, Family};
use serde_json::Value;
use task::tally::BOUNDS;

const UP: Family = ("dunnage_shim_up", "gauge", "Whether the shim has answered.");
const UPTIME: Family = (
    "dunnage_shim_uptime_seconds",
    "gauge",
    "Since when its process runs.",
);
const MEMORY: Family = (
    "dunnage_shim_memory_bytes",
    "gauge",
    "Memory of its own, and its part of what it shares.",
);
const THREADS: Family = (
    "dunnage_shim_threads",
    "gauge",
    "Threads beside its loop: each waits for a file.",
);
const CHILDREN: Family = (
    "dunnage_shim_children",
    "gauge",
    "Processes that it has started or adopted, containers' too.",
);
const PROCESSES: Family = (
    "dunnage_shim_processes",
    "gauge",
    "Processes of its containers, by their state.",
);
const CALLS: Family = (
    "dunnage_shim_calls_total",
    "counter",
    "Calls that were answered.",
);
const CALLS_FAILED: Family = (
    "dunnage_shim_calls_failed_total",
    "counter",
    "Those that were answered with an error.",
);
const CALL_SECONDS: &str = "dunnage_shim_call_seconds";
const CALL_HELP: &str = "How long calls took that do not only wait.";
const CALLS_NOW: Family = (
    "dunnage_shim_calls",
    "gauge",
    "Calls that go on and do not only wait.",
);
const OLDEST: Family = (
    "dunnage_shim_oldest_call_seconds",
    "gauge",
    "How long the oldest of these has gone on.",
);
const RUNTIME_FAILED: Family = (
    "dunnage_shim_runtime_failed_total",
    "counter",
    "Commands of the OCI runtime that have failed.",
);
const RUNTIME_SECONDS: &str = "dunnage_shim_runtime_seconds";
const RUNTIME_HELP: &str = "How long commands of the OCI runtime took.";
const EXITS: Family = (
    "dunnage_shim_exits_total",
    "counter",
    "Processes of containers that have ended.",
);
const OOMS: Family = (
    "dunnage_shim_oom_total",
    "counter",
    "Times that a container had no memory left.",
);
const EVENTS: Family = (
    "dunnage_shim_events_waiting",
    "gauge",
    "Events that containerd has not taken.",
);
const EVENT_BYTES: Family = (
    "dunnage_shim_events_waiting_bytes",
    "gauge",
    "What these take.",
);
const EVENT_AGE: Family = (
    "dunnage_shim_events_oldest_seconds",
    "gauge",
    "How long the oldest of these has waited.",
);
const CAUSES: Family = (
    "dunnage_shim_causes",
    "gauge",
    "Things that take long, of which `inspect` tells why.",
);

/// What `reports` say, in Prometheus' form.
pub fn text(reports: &[Value]) -> String {
    let mut families = Families::default();
    for report in reports {
        shim(&mut families, report);
    }
    families.text()
}

fn shim(families: &mut Families, report: &Value) {
    let label = |key: &str| escaped(report[key].as_str().unwrap_or_default());
    let labels = format!(
        "namespace=\"{}\",shim=\"{}\"",
        label("namespace"),
        label("id")
    );
    let process = &report["process"];
    let length = |list: &Value| list.as_array().map_or(0, Vec::len) as f64;
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let is_up = report["error"].is_null();
    families.add(UP, &labels, u8::from(is_up));
    families.add(UPTIME, &labels, number(&process["seconds"]));
    families.add(MEMORY, &labels, number(&process["memory_bytes"]));
    families.add(THREADS, &labels, length(&process["threads"]));
    families.add(CHILDREN, &labels, length(&process["children"]));
    families.add(CAUSES, &labels, length(&report["causes"]));
    if !is_up {
        return;
    }
    let containers = report["containers"].as_array().into_iter().flatten();
    let processes = containers.flat_map(|it| it["processes"].as_array().into_iter().flatten());
    let states: Vec<&str> = processes.filter_map(|it| it["state"].as_str()).collect();
    for state in ["created", "running", "paused", "stopped"] {
        let count = states.iter().filter(|one| **one == state).count();
        families.add(PROCESSES, &format!("{labels},state=\"{state}\""), count);
    }
    let calls = report["calls"].as_array().into_iter().flatten();
    let busy = calls.filter(|call| call["only_waits"] == false);
    let busy: Vec<f64> = busy.map(|call| number(&call["seconds"])).collect();
    families.add(CALLS_NOW, &labels, busy.len());
    families.add(OLDEST, &labels, busy.iter().copied().fold(0.0, f64::max));
    let tally = &report["tally"];
    for times in tally["calls"].as_array().into_iter().flatten() {
        let name = escaped(times["name"].as_str().unwrap_or_default());
        let labels = format!("{labels},method=\"{name}\"");
        families.add(CALLS, &labels, number(&times["count"]));
        families.add(CALLS_FAILED, &labels, number(&times["failed"]));
        if number(&times["seconds"]) > 0.0 {
            histogram(families, (CALL_SECONDS, CALL_HELP), &labels, times);
        }
    }
    for times in tally["runtime"].as_array().into_iter().flatten() {
        let name = escaped(times["name"].as_str().unwrap_or_default());
        let labels = format!("{labels},command=\"{name}\"");
        families.add(RUNTIME_FAILED, &labels, number(&times["failed"]));
        histogram(families, (RUNTIME_SECONDS, RUNTIME_HELP), &labels, times);
    }
    families.add(EXITS, &labels, number(&tally["exits"]));
    families.add(OOMS, &labels, number(&tally["ooms"]));
    let events = &report["events"];
    families.add(EVENTS, &labels, number(&events["waiting"]));
    families.add(EVENT_BYTES, &labels, number(&events["bytes"]));
    families.add(EVENT_AGE, &labels, number(&events["oldest_seconds"]));
}

fn histogram(
    families: &mut Families,
    (name, help): (&'static str, &'static str),
    labels: &str,
    times: &Value,
) {
    let family = (name, "histogram", help);
    let count = times["count"].as_u64().unwrap_or(0);
    let mut sum = 0;
    for (at, bound) in BOUNDS.iter().enumerate() {
        sum += times["within"][at].as_u64().unwrap_or(0);
        families.add_as(family, "_bucket", &format!("{labels},le=\"{bound}\""), sum);
    }
    families.add_as(family, "_bucket", &format!("{labels},le=\"+Inf\""), count);
    let seconds = times["seconds"].as_f64().unwrap_or(0.0);
    families.add_as(family, "_sum", labels, seconds);
    families.add_as(family, "_count", labels, count);
}

/// As a label's value: a namespace and an id have none of these, what a shim makes up may.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_shim_that_says_nothing_is_down() {
        let text =
            text(&[json!({"namespace": "n", "id": "a\"b", "error": "why", "causes": ["x"]})]);
        assert!(
            text.contains("dunnage_shim_up{namespace=\"n\",shim=\"a\\\"b\"} 0\n"),
            "{text}"
        );
        assert!(text.contains("dunnage_shim_causes{namespace=\"n\",shim=\"a\\\"b\"} 1\n"));
        assert!(!text.contains("dunnage_shim_exits_total"));
    }

    /// The dashboard asks for nothing that is not there.
    #[test]
    fn the_dashboard_knows_its_metrics() {
        let times = json!([{"name": "x", "count": 2, "failed": 1, "seconds": 0.5, "within": [1]}]);
        let report = json!({
            "namespace": "n", "id": "i", "error": null, "causes": [], "containers": [], "calls": [],
            "tally": {"calls": times, "runtime": times, "exits": 1, "ooms": 1},
        });
        let text = text(&[report]);
        let dashboard = include_str!("../../etc/grafana-shims.json");
        let names = dashboard.split("dunnage_shim_").skip(1).map(|rest| {
            let end = rest.find(|c: char| c != '_' && !c.is_ascii_lowercase());
            format!("dunnage_shim_{}", &rest[..end.unwrap_or(rest.len())])
        });
        let names: std::collections::BTreeSet<String> = names.collect();
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            assert!(text.contains(&format!("\n{name}{{")), "{name}: {text}");
        }
    }
}
