// SPDX-License-Identifier: Apache-2.0
//! `make bench`: our shim, containerd's and the other Rust shim, side by side in one run.
//!
//! ```text
//! contender ─┬─ memory   of 1 to 300 shims, and after execs ─┐
//!            ├─ latency  of every step, beside bare runc     ├─ results ─┬─ runs/<date>/*.json
//!            ├─ storm    of execs and of containers          │           ├─ table   docs/bench.md
//!            ├─ runtimes with crun in place of runc          │           └─ plot    docs/*.svg
//!            ├─ stdio    MiB/s and CPU                       │
//!            └─ idle     wakeups in a minute                 ├─ series  the same over time
//!               vm       boots, beside bare ones             ┘
//! pod: a contender with one container   process: what /proc says   sample: median and spread
//! scale: what the figures of 300 pods mean for 1,000
//! ```
//! `make bench ONLY="latency stdio"` measures some of it and takes the rest from the last run;
//! `ONLY=report` measures nothing. With `QUICK=1` there are a fifth of the rounds, and the results
//! are printed only: to see whether a change was worth it.

mod contender;
mod idle;
mod latency;
mod memory;
mod plot;
mod pod;
mod process;
mod runtimes;
mod sample;
mod scale;
mod series;
mod stdio;
mod storm;
mod table;
mod vm;

use contender::Contender;
use harness::peers::workspace;
use nix::sys::signal::{self, SigHandler, Signal};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use std::{env, fs};

/// The parts, in the order they are measured: those that want a fresh machine first.
const PARTS: [&str; 8] = [
    "latency", "runtimes", "ctr", "memory", "storm", "stdio", "idle", "vm",
];

fn main() {
    // A shell that starts this in the background has it ignore them, and so would each runtime and container.
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: this sets what the kernel does, and runs nothing.
        unsafe { signal::signal(signal, SigHandler::SigDfl) }.expect("signal(2)");
    }
    let only = env::var("ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split_whitespace().collect();
    if let Some(unknown) = only
        .iter()
        .find(|part| !PARTS.contains(part) && **part != "report")
    {
        eprintln!(
            "bench: ONLY={unknown}: must be report, or some of {}",
            PARTS.join(", ")
        );
        std::process::exit(2);
    }
    let contenders = contender::all();
    let last = last_run();
    let dir = match (&last, only.is_empty()) {
        _ if is_quick() => env::temp_dir().join(format!("dunnage-bench-{}", std::process::id())),
        (Some(last), false) => last.clone(),
        _ => runs().join(output(Command::new("date").args(["-u", "+%F"])).trim()),
    };
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let begin = Instant::now();
    for part in PARTS {
        if only.is_empty() || only.contains(&part) {
            let result = measure(part, &contenders);
            save(&dir.join(format!("{part}.json")), &result);
            eprintln!(
                "bench: {part} done after {:.0} s",
                begin.elapsed().as_secs_f64()
            );
        }
    }
    if !only.contains(&"report") {
        save(&dir.join("machine.json"), &machine(&contenders));
    }
    let results = load(&dir);
    let tables = table::all(&results);
    println!("{tables}");
    if is_quick() {
        fs::remove_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        return;
    }
    table::into_page(&workspace().join("docs/bench.md"), &tables);
    plot::all(&workspace().join("docs"), &results);
    let [smaller, bigger] = series::lists(&results);
    save(&dir.join("series.smaller.json"), &smaller);
    save(&dir.join("series.bigger.json"), &bigger);
    let all = series::runs(&runs()).into_iter();
    let all: Vec<_> = all.map(|(date, dir)| (date, load(&dir))).collect();
    series::draw(&workspace().join("docs/history.svg"), &all);
}

/// True if the figures are to be had soon, and not to be kept.
fn is_quick() -> bool {
    env::var_os("QUICK").is_some_and(|value| !value.is_empty())
}

/// So many rounds, or a fifth of them.
fn rounds(full: usize) -> usize {
    if is_quick() { full.div_ceil(5) } else { full }
}

fn measure(part: &str, contenders: &[Contender]) -> Value {
    match part {
        "latency" => latency::steps(contenders),
        "ctr" => latency::ctr_run(contenders),
        "memory" => memory::measure(contenders),
        "storm" => storm::measure(contenders),
        "stdio" => stdio::measure(contenders),
        "runtimes" => runtimes::measure(contenders),
        "vm" => vm::measure(),
        _ => idle::measure(contenders),
    }
}

fn runs() -> PathBuf {
    workspace().join("tests/benches/runs")
}

/// The newest directory of results: they are named by date.
fn last_run() -> Option<PathBuf> {
    series::runs(&runs()).pop().map(|(_, dir)| dir)
}

fn save(path: &Path, value: &Value) {
    let text = serde_json::to_string_pretty(value).expect("JSON");
    fs::write(path, text + "\n").unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// `{<part>: …, machine: …}` of one run; a part that was never measured is missing.
fn load(dir: &Path) -> Value {
    let mut all = Map::new();
    for part in PARTS.into_iter().chain(["machine"]) {
        let text = fs::read_to_string(dir.join(format!("{part}.json")));
        if let Some(value) = text.ok().and_then(|text| serde_json::from_str(&text).ok()) {
            all.insert(part.to_owned(), value);
        }
    }
    all.into()
}

fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the figures were measured on, and of what.
fn machine(contenders: &[Contender]) -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let versions: Map<String, Value> = contenders
        .iter()
        .map(|c| {
            (
                c.key.to_owned(),
                json!({ "label": c.label, "version": c.version }),
            )
        })
        .collect();
    json!({
        "date": output(Command::new("date").args(["-u", "+%F"])).trim(),
        "kernel": output(Command::new("uname").arg("-r")).trim(),
        "cpu": model.map_or("", |m| m.trim_start_matches([' ', '\t', ':'])),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "runc": contender::runtime_version(),
        "contenders": versions,
        "latency": latency::method(),
    })
}
