// SPDX-License-Identifier: Apache-2.0
//! Our shim and its rival, each with runc and with crun, and ours without a runtime for execs: what of a
//! container's start and of an exec is the runtime's, and what the shim's.

use crate::contender::{Contender, OURS, RIVAL};
use crate::pod::{Pod, delete_exec, run_exec};
use crate::process;
use crate::sample::Sample;
use harness::{Test, peers, test};
use protos::runc::Options;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;
/// Execs one after the other, of which each is a sample, and at once.
const EXECS: usize = 20;
const AT_ONCE: usize = 100;

/// What is measured: its name, its pointer in the results, its unit, and the most that ours may be, with
/// crun, of the rival's with runc.
const FIGURES: [(&str, &str, &str, f64); 4] = [
    ("Create and Start", "create and start", "ms", 0.45),
    ("exec cycle", "exec cycle", "ms", 0.35),
    ("CPU of an exec", "cpu of an exec", "ms", 0.35),
    ("100 execs at once", "100 execs", "s", 0.4),
];
/// And of the rival's with crun, of each.
const BESIDE: f64 = 0.8;
/// Ours with crun, but for execs, which it makes itself.
const DIRECT: &str = "direct";

/// A shim with a runtime; its key is `<shim>/<runtime>`.
struct Pair<'a> {
    shim: &'a Contender,
    runtime: &'static str,
    program: PathBuf,
}

#[derive(Default)]
struct Samples {
    create_and_start: Sample,
    exec_cycle: Sample,
    cpu: Sample,
    at_once: Sample,
}

/// `{<shim>/<runtime>: {<figure>: sample}}`; they take turns, in another order each round.
pub fn measure(contenders: &[Contender]) -> Value {
    let crun = peers::peers().join("crun/bin/crun");
    if !crun.exists() {
        eprintln!("bench: crun is MISSING (make setup)");
        return Value::Null;
    }
    let of = |key: &str| contenders.iter().find(|contender| contender.key == key);
    let pairs = [OURS, RIVAL].into_iter().filter_map(of).flat_map(|shim| {
        let runc = peers::runc().to_owned();
        let runtimes = [
            ("runc", runc),
            ("crun", crun.clone()),
            (DIRECT, crun.clone()),
        ];
        let has = |(runtime, _): &(&str, PathBuf)| *runtime != DIRECT || shim.key == OURS;
        runtimes
            .into_iter()
            .filter(has)
            .map(|(runtime, program)| Pair {
                shim,
                runtime,
                program,
            })
    });
    let mut pairs: Vec<(Pair, Samples)> = pairs.map(|pair| (pair, Samples::default())).collect();
    for round in 0..crate::rounds(ROUNDS) {
        test::measure(Duration::from_secs(600), async |test| {
            let count = pairs.len();
            for turn in 0..count {
                let (pair, samples) = &mut pairs[(turn + round) % count];
                life(test, pair, &format!("r{round}-{turn}"), samples).await;
            }
        });
    }
    let all = pairs.iter().map(|(pair, samples)| {
        let key = format!("{}/{}", pair.shim.key, pair.runtime);
        let value = json!({
            "create and start": samples.create_and_start.json(),
            "exec cycle": samples.exec_cycle.json(),
            "cpu of an exec": samples.cpu.json(),
            "100 execs": samples.at_once.json(),
        });
        (key, value)
    });
    all.collect::<Map<_, _>>().into()
}

async fn life(test: &Test, pair: &Pair<'_>, id: &str, samples: &mut Samples) {
    let bundle = test.bundle(id).build();
    let switch = if pair.runtime == DIRECT { "1" } else { "" };
    let start = bundle.start().binary(&pair.shim.binary);
    let shim = start.env("DUNNAGE_DIRECT_EXEC", switch).shim().await;
    let pod = Pod { shim, bundle };
    let options = Options {
        binary_name: pair.program.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let begin = Instant::now();
    let create = pod.bundle.create_with(&options);
    pod.shim.create(create).await.expect("Create");
    pod.shim.start(id, "").await.expect("Start");
    samples.create_and_start.time(begin.elapsed());
    let shim = pod.shim.pid();
    let before = process::cpu_with_children(shim);
    for n in 0..EXECS {
        let cycle = pod.exec_cycle(&format!("e{n}")).await.expect("exec cycle");
        samples.exec_cycle.time(cycle);
    }
    let used = process::cpu_with_children(shim) - before;
    samples.cpu.push(used * 1e3 / EXECS as f64);
    samples.at_once.push(at_once(&pod).await.as_secs_f64());
    pod.end().await;
}

/// From the first Start to the last exit.
async fn at_once(pod: &Pod) -> Duration {
    let id = &pod.bundle.id;
    for n in 0..AT_ONCE {
        let request = pod.bundle.exec(&format!("a{n}"), &["true"]);
        Pod::call(&pod.shim, &request).await.expect("Exec");
    }
    let begin = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for n in 0..AT_ONCE {
        let (shim, id) = (pod.shim.clone(), id.clone());
        running.spawn_local(async move { run_exec(&shim, &id, &format!("a{n}")).await });
    }
    while let Some(done) = running.join_next().await {
        done.expect("a task").expect("an exec");
    }
    let took = begin.elapsed();
    for n in 0..AT_ONCE {
        let _ = delete_exec(&pod.shim, id, &format!("a{n}")).await;
    }
    took
}

/// Markdown: each figure of each pair, and what ours with crun is of the rival's.
pub fn table(results: &Value) -> String {
    let all = &results["runtimes"];
    let median = |shim: &str, runtime: &str, figure: &str| {
        let sample = &all[format!("{shim}/{runtime}")][figure];
        sample["median"].as_f64()
    };
    if median(OURS, "crun", FIGURES[0].1).is_none() {
        return String::new();
    }
    let mut text = String::from(
        "\n| With runc and with crun | dunnage, runc | dunnage, crun | dunnage, crun, direct execs | Go 2.1, runc | \
         Go 2.1, crun | dunnage with crun, of Go 2.1's with runc | … with crun |\n\
         |---|---:|---:|---:|---:|---:|---|---|\n",
    );
    for (name, figure, unit, limit) in FIGURES {
        let _ = write!(text, "| {name}, {unit} |");
        for (shim, runtime) in [
            (OURS, "runc"),
            (OURS, "crun"),
            (OURS, DIRECT),
            (RIVAL, "runc"),
            (RIVAL, "crun"),
        ] {
            match median(shim, runtime, figure) {
                Some(value) if unit == "s" => _ = write!(text, " {value:.2} |"),
                Some(value) => _ = write!(text, " {value:.1} |"),
                None => text.push_str(" – |"),
            }
        }
        for (runtime, limit) in [("runc", limit), ("crun", BESIDE)] {
            let ours = median(OURS, "crun", figure);
            let ratio = ours.zip(median(RIVAL, runtime, figure));
            match ratio.map(|(ours, rivals)| ours / rivals) {
                Some(ratio) => _ = write!(text, " {ratio:.3} (goal: {limit}) |"),
                None => text.push_str(" – |"),
            }
        }
        text.push('\n');
    }
    text
}
