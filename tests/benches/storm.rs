// SPDX-License-Identifier: Apache-2.0
//! Many execs at once in one container, many containers at once in one shim, and State meanwhile.

use crate::contender::Contender;
use crate::pod::{Pod, delete_exec, run_exec};
use crate::sample::Sample;
use harness::{Bundle, Shim, Test, test};
use protos::task;
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Concurrent execs, and how many rounds of so many.
const EXECS: [(usize, usize); 3] = [(30, 7), (100, 7), (300, 3)];
/// Containers created at once in one shim, and how many rounds of so many.
const CONTAINERS: (usize, usize) = (50, 3);
/// Who needs longer for one storm is not waited for, and is spared the greater ones.
const ENOUGH: Duration = Duration::from_secs(10);

/// `{<contender>: {"30 execs": {seconds, gave_up, state_p99_ms, state_max_ms, failed}, …}}`; where
/// nobody waited for the end, `seconds` is how long they did. The contenders take turns.
pub fn measure(contenders: &[Contender]) -> Value {
    let mut all = Map::new();
    for (count, rounds) in EXECS {
        let name = format!("{count} execs");
        turns(
            contenders,
            &mut all,
            &name,
            rounds,
            async |test, contender| execs(test, contender, count).await,
        );
    }
    let (count, rounds) = CONTAINERS;
    let name = format!("{count} containers");
    turns(contenders, &mut all, &name, rounds, containers);
    all.into()
}

/// The storm `name` for each contender, so many times by turns. Who gave up on a smaller one is spared
/// the greater ones of its kind.
fn turns(
    contenders: &[Contender],
    all: &mut Map<String, Value>,
    name: &str,
    rounds: usize,
    storm: impl AsyncFn(&Test, &Contender) -> Storm,
) {
    let kind = name.split(' ').next_back();
    let is_spared = |contender: &Contender| {
        let storms = all.get(contender.key).and_then(Value::as_object);
        let gave_up = |(name, storm): (&String, &Value)| {
            name.split(' ').next_back() == kind && storm["gave_up"] == true
        };
        storms.is_some_and(|storms| storms.iter().any(gave_up))
    };
    let taking_part = contenders.iter().filter(|c| !is_spared(c));
    let mut tallies: Vec<_> = taking_part.map(|c| (c, Tally::default())).collect();
    for _ in 0..crate::rounds(rounds) {
        for (contender, tally) in &mut tallies {
            if !tally.gave_up {
                let limit = Duration::from_secs(400);
                tally.add(test::measure(limit, async |test| {
                    storm(test, contender).await
                }));
            }
        }
    }
    for (contender, tally) in tallies {
        let storms = all.entry(contender.key).or_insert_with(|| json!({}));
        storms[name] = tally.json();
    }
    eprintln!("bench: storms of {name} measured");
}

/// What one storm came to.
struct Storm {
    outcome: Outcome,
    /// Latencies of State meanwhile, in milliseconds.
    state: Vec<f64>,
}

struct Outcome {
    time: Duration,
    gave_up: bool,
    failed: Vec<String>,
}

/// What some storms of one kind came to.
#[derive(Default)]
struct Tally {
    seconds: Sample,
    p99: Sample,
    state: Sample,
    failed: Vec<String>,
    gave_up: bool,
}

impl Tally {
    fn add(&mut self, storm: Storm) {
        self.seconds.push(storm.outcome.time.as_secs_f64());
        let mut latencies = Sample::default();
        for latency in storm.state {
            latencies.push(latency);
            self.state.push(latency);
        }
        self.p99.push(latencies.quantile(0.99));
        self.failed.extend(storm.outcome.failed);
        self.gave_up = storm.outcome.gave_up;
    }

    fn json(&self) -> Value {
        json!({
            "seconds": self.seconds.json(),
            "gave_up": self.gave_up,
            "state_p99_ms": self.p99.json(),
            "state_max_ms": self.state.max(),
            "failed": self.failed.len(),
            "first failure": self.failed.first(),
        })
    }
}

/// Asks for State, over a connection of its own, every 2 ms until told to stop.
fn watch(shim: &Shim, id: &str) -> (Rc<Cell<bool>>, tokio::task::JoinHandle<Vec<f64>>) {
    let stop = Rc::new(Cell::new(false));
    let (shim, id, stopped) = (shim.clone(), id.to_owned(), Rc::clone(&stop));
    let handle = tokio::task::spawn_local(async move {
        let shim = shim.reconnect().await;
        let mut latencies = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        while !stopped.get() {
            tick.tick().await;
            let begin = Instant::now();
            let request = task::StateRequest {
                id: id.clone(),
                exec_id: String::new(),
            };
            let state = Pod::call(&shim, &request).await;
            if state.is_ok() {
                latencies.push(begin.elapsed().as_secs_f64() * 1e3);
            }
        }
        latencies
    });
    (stop, handle)
}

/// All `things` at once, from the first call to the last answer, if that comes soon enough.
async fn all_at_once<F: Future<Output = Result<(), String>> + 'static>(things: Vec<F>) -> Outcome {
    let begin = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for thing in things {
        running.spawn_local(thing);
    }
    let mut failed = Vec::new();
    let all = async {
        while let Some(done) = running.join_next().await {
            failed.extend(done.expect("a task").err());
        }
    };
    let gave_up = tokio::time::timeout(ENOUGH, all).await.is_err();
    Outcome {
        time: begin.elapsed(),
        gave_up,
        failed,
    }
}

/// Ends a pod; one that was not waited for is killed, and the end of the test removes the rest.
async fn end(pod: Pod, outcome: &Outcome) {
    if outcome.gave_up {
        pod.shim.kill_process().await;
    } else {
        pod.end().await;
    }
}

async fn execs(test: &Test, contender: &Contender, count: usize) -> Storm {
    let pod = Pod::new(test, contender, "c").await;
    let id = &pod.bundle.id;
    for n in 0..count {
        let request = pod.bundle.exec(&format!("e{n}"), &["true"]);
        Pod::call(&pod.shim, &request).await.expect("Exec");
    }
    let (stop, states) = watch(&pod.shim, id);
    let one = |n: usize| {
        let (shim, id) = (pod.shim.clone(), id.clone());
        async move { run_exec(&shim, &id, &format!("e{n}")).await }
    };
    let outcome = all_at_once((0..count).map(one).collect()).await;
    stop.set(true);
    let state = states.await.expect("State");
    if !outcome.gave_up {
        for n in 0..count {
            let _ = delete_exec(&pod.shim, id, &format!("e{n}")).await;
        }
    }
    end(pod, &outcome).await;
    Storm { outcome, state }
}

async fn containers(test: &Test, contender: &Contender) -> Storm {
    let pod = Pod::new(test, contender, "pod").await;
    let bundle = |n: usize| test.bundle(&format!("c{n}")).build();
    let bundles: Vec<Bundle> = (0..CONTAINERS.0).map(bundle).collect();
    let (stop, states) = watch(&pod.shim, "pod");
    let one = |bundle: &Bundle| {
        let (shim, request) = (pod.shim.clone(), bundle.create());
        async move {
            let id = request.id.clone();
            Pod::call(&shim, &request).await?;
            let start = task::StartRequest {
                id,
                exec_id: String::new(),
            };
            Pod::call(&shim, &start).await?;
            Ok(())
        }
    };
    let outcome = all_at_once(bundles.iter().map(one).collect()).await;
    stop.set(true);
    let state = states.await.expect("State");
    for bundle in bundles.iter().filter(|_| !outcome.gave_up) {
        let (id, signal) = (bundle.id.clone(), libc::SIGKILL as u32);
        let kill = task::KillRequest {
            id: id.clone(),
            exec_id: String::new(),
            signal,
            all: true,
        };
        let _ = Pod::call(&pod.shim, &kill).await;
        let wait = task::WaitRequest {
            id: id.clone(),
            exec_id: String::new(),
        };
        let _ = Pod::call(&pod.shim, &wait).await;
        let _ = pod.shim.delete(&id, "").await;
    }
    end(pod, &outcome).await;
    Storm { outcome, state }
}
