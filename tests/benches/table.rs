// SPDX-License-Identifier: Apache-2.0
//! Results as tables for docs/bench.md.

use crate::contender::{OURS, RIVAL, RUNC};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Where the tables stand in docs/bench.md.
const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";
const COLUMNS: [(&str, &str); 6] = [
    (OURS, "dunnage"),
    ("go-1.6", "Go 1.6"),
    ("go-1.7", "Go 1.7"),
    (RIVAL, "Go 2.1"),
    ("rust-0.2", "Rust 0.2"),
    (RUNC, "bare runc"),
];

/// A reference that is not measured here, for those who do not run Debian's builds.
const NO_GRPC: &str = "\nThe Go shims are Debian's, which carry gRPC. Upstream's release of 2.3.4 is built with \
    `no_grpc`: 10.7 MB of RSS, 3.4 of them anonymous, 4.1 MB of PSS, where the same without it has \
    16.0, 3.7 and 4.7 (10 idle shims, on another machine of 2 cores).\n";

/// A figure of one contender: a JSON pointer below its key.
pub struct Row {
    pub name: &'static str,
    pub part: &'static str,
    pub pointer: &'static str,
    digits: usize,
}

const fn row(name: &'static str, part: &'static str, pointer: &'static str, digits: usize) -> Row {
    Row {
        name,
        part,
        pointer,
        digits,
    }
}

const MEMORY: [Row; 8] = [
    row(
        "per further shim, KiB (10 shims)",
        "memory",
        "/points/1/each/all",
        0,
    ),
    row(
        "… of it kernel memory",
        "memory",
        "/points/1/each/kernel",
        0,
    ),
    row(
        "per further shim, KiB (100 shims)",
        "memory",
        "/points/3/each/all",
        0,
    ),
    row("growth by 300 execs, KiB", "memory", "/execs/growth/all", 0),
    row("RSS, KiB", "memory", "/points/1/held/rss", 0),
    row("PSS, KiB", "memory", "/points/1/held/pss", 0),
    row("threads", "memory", "/execs/held/threads", 0),
    row("file descriptors", "memory", "/points/1/held/fds", 0),
];

const LATENCY: [Row; 11] = [
    row("`start` command", "latency", "/start command/median", 1),
    row("Create", "latency", "/create/median", 1),
    row("Start", "latency", "/start/median", 1),
    row("Create and Start", "latency", "/create and start/median", 1),
    row("exec cycle", "latency", "/exec cycle/median", 1),
    row(
        "… with the wait for its end",
        "latency",
        "/exec to its end/median",
        1,
    ),
    row("State", "latency", "/state/median", 2),
    row("Kill", "latency", "/kill/median", 2),
    row(
        "exit seen after Kill",
        "latency",
        "/wait after kill/median",
        1,
    ),
    row("Delete", "latency", "/delete/median", 1),
    row("`ctr run --rm`, containerd 2.1", "ctr", "/median", 0),
];

const STORM: [Row; 8] = [
    row(
        "30 execs at once, s",
        "storm",
        "/30 execs/seconds/median",
        2,
    ),
    row(
        "100 execs at once, s",
        "storm",
        "/100 execs/seconds/median",
        2,
    ),
    row(
        "300 execs at once, s",
        "storm",
        "/300 execs/seconds/median",
        2,
    ),
    row(
        "50 containers at once in one shim, s",
        "storm",
        "/50 containers/seconds/median",
        2,
    ),
    row(
        "State p99 during 30 execs, ms",
        "storm",
        "/30 execs/state_p99_ms/median",
        1,
    ),
    row(
        "State p99 during 100 execs, ms",
        "storm",
        "/100 execs/state_p99_ms/median",
        1,
    ),
    row(
        "State p99 during 300 execs, ms",
        "storm",
        "/300 execs/state_p99_ms/median",
        1,
    ),
    row(
        "State p99 during 50 containers, ms",
        "storm",
        "/50 containers/state_p99_ms/median",
        1,
    ),
];

const STDIO: [Row; 6] = [
    row(
        "stdout, 1 GiB, MiB/s",
        "stdio",
        "/stdout/mib_per_s/median",
        0,
    ),
    row("… CPU of the shim, s", "stdio", "/stdout/cpu_s/median", 2),
    row(
        "stdin and back, 20 MiB, MiB/s",
        "stdio",
        "/stdin and back/mib_per_s/median",
        0,
    ),
    row(
        "… CPU of the shim, s",
        "stdio",
        "/stdin and back/cpu_s/median",
        2,
    ),
    row(
        "terminal, 100 MiB, MiB/s",
        "stdio",
        "/terminal/mib_per_s/median",
        0,
    ),
    row("… CPU of the shim, s", "stdio", "/terminal/cpu_s/median", 2),
];

const IDLE: [Row; 2] = [
    row("wakeups of 50 shims in 60 s", "idle", "/wakeups", 0),
    row("CPU of 50 shims in 60 s, s", "idle", "/cpu_s", 2),
];

/// A goal: ours as a ratio to another's, or as it is.
pub struct Goal {
    pub name: &'static str,
    pub figure: Row,
    /// Ratio to this contender, else the figure itself.
    to: Option<&'static str>,
    limit: f64,
    /// At least, not at most.
    least: bool,
}

const fn most(name: &'static str, figure: Row, to: Option<&'static str>, limit: f64) -> Goal {
    Goal {
        name,
        figure,
        to,
        limit,
        least: false,
    }
}

pub const GOALS: [Goal; 11] = [
    most(
        "memory per further shim",
        row("", "memory", "/points/1/each/all", 0),
        Some(RIVAL),
        0.06,
    ),
    most(
        "threads",
        row("", "memory", "/execs/held/threads", 0),
        None,
        1.0,
    ),
    most(
        "wakeups of 50 idle shims in 60 s",
        row("", "idle", "/wakeups", 0),
        None,
        0.0,
    ),
    most(
        "`start` command",
        row("", "latency", "/start command/median", 1),
        Some(RIVAL),
        0.35,
    ),
    most(
        "Create and Start",
        row("", "latency", "/create and start/median", 1),
        Some(RUNC),
        1.05,
    ),
    most(
        "exec cycle",
        row("", "latency", "/exec cycle/median", 1),
        Some(RUNC),
        1.05,
    ),
    most(
        "exec cycle, to the process's end",
        row("", "latency", "/exec to its end/median", 1),
        Some(RUNC),
        1.05,
    ),
    most(
        "100 execs at once",
        row("", "storm", "/100 execs/seconds/median", 2),
        Some(RIVAL),
        0.8,
    ),
    Goal {
        name: "stdout throughput",
        figure: row("", "stdio", "/stdout/mib_per_s/median", 0),
        to: Some(RIVAL),
        limit: 2.0,
        least: true,
    },
    most(
        "CPU for stdout",
        row("", "stdio", "/stdout/cpu_s/median", 2),
        Some(RIVAL),
        0.5,
    ),
    most(
        "State p99 during 100 execs, ms",
        row("", "storm", "/100 execs/state_p99_ms/median", 1),
        None,
        5.0,
    ),
];

/// Every table: its title, with the unit of what does not say its own, and its figures.
pub fn sections() -> [(&'static str, &'static [Row]); 5] {
    [
        ("Memory", &MEMORY),
        ("Latency, ms", &LATENCY),
        ("Storms", &STORM),
        ("Stdio", &STDIO),
        ("Idle", &IDLE),
    ]
}

pub fn figure(results: &Value, row: &Row, key: &str) -> Option<f64> {
    results
        .get(row.part)?
        .get(key)?
        .pointer(row.pointer)?
        .as_f64()
}

/// True if nobody waited for the end of what took this long.
fn gave_up(results: &Value, row: &Row, key: &str) -> bool {
    let whole = row.pointer.strip_suffix("/seconds/median");
    whole.is_some_and(|whole| {
        let flag = results[row.part][key].pointer(&format!("{whole}/gave_up"));
        flag.is_some_and(|flag| *flag == true)
    })
}

/// Markdown: the goals, then every figure.
pub fn all(results: &Value) -> String {
    let machine = &results["machine"];
    let word = |key: &str| machine[key].as_str().unwrap_or("?").to_owned();
    let mut text = format!(
        "Measured on {} with `make bench`: {} CPUs ({}), Linux {}, {}. Medians; all contenders \
         took turns in one run. Raw results: [tests/benches/runs](../tests/benches/runs).\n\n",
        word("date"),
        machine["cpus"],
        word("cpu"),
        word("kernel"),
        word("runc"),
    );
    goals(&mut text, results);
    for (title, rows) in sections() {
        table(&mut text, results, title, rows);
        if title == "Memory" {
            text.push_str(NO_GRPC);
            text.push_str(&crate::scale::paragraph(results));
        }
    }
    text + &crate::runtimes::table(results) + &crate::vm::table(results)
}

fn goals(text: &mut String, results: &Value) {
    text.push_str("| goal | limit | measured | met |\n|---|---|---|---|\n");
    for goal in &GOALS {
        let ours = figure(results, &goal.figure, OURS);
        let measured = match goal.to {
            Some(to) => ours
                .zip(figure(results, &goal.figure, to))
                .map(|(ours, other)| ours / other),
            None => ours,
        };
        let to = COLUMNS.iter().find(|(key, _)| Some(*key) == goal.to);
        let of = to.map_or(String::new(), |(_, label)| format!(" of {label}'s"));
        let bound = if goal.least { "at least" } else { "at most" };
        let met = measured.map(|m| {
            if goal.least {
                m >= goal.limit
            } else {
                m <= goal.limit
            }
        });
        let met = met.map_or("?", |met| if met { "yes" } else { "no" });
        let measured = measured.map_or("?".to_owned(), |m| match goal.to {
            Some(_) => format!("{m:.3}"),
            None => format!("{m:.*}", goal.figure.digits),
        });
        let _ = writeln!(
            text,
            "| {} | {bound} {}{of} | {measured} | {met} |",
            goal.name, goal.limit
        );
    }
}

fn table(text: &mut String, results: &Value, title: &str, rows: &[Row]) {
    let known = |key: &str| rows.iter().any(|row| figure(results, row, key).is_some());
    let columns: Vec<_> = COLUMNS.iter().filter(|(key, _)| known(key)).collect();
    if columns.is_empty() {
        return;
    }
    let _ = write!(text, "\n| {title} |");
    for (_, label) in &columns {
        let _ = write!(text, " {label} |");
    }
    let _ = writeln!(text, "\n|---|{}", "---:|".repeat(columns.len()));
    for row in rows {
        let _ = write!(text, "| {} |", row.name);
        for (key, _) in &columns {
            let cell = match figure(results, row, key) {
                None => "–".to_owned(),
                Some(f) if gave_up(results, row, key) => format!("> {f:.0}"),
                Some(f) => format!("{f:.*}", row.digits),
            };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
}

/// Puts the tables where the page has its marks.
pub fn into_page(path: &Path, tables: &str) {
    let page = fs::read_to_string(path).expect("docs/bench.md");
    let (before, rest) = page.split_once(BEGIN).expect("mark in docs/bench.md");
    let (_, after) = rest.split_once(END).expect("mark in docs/bench.md");
    fs::write(path, format!("{before}{BEGIN}\n{tables}{END}{after}")).expect("docs/bench.md");
}
