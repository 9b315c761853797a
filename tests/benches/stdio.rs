// SPDX-License-Identifier: Apache-2.0
//! How fast bytes go through a shim, and what CPU time it takes for them.

use crate::contender::Contender;
use crate::pod::Pod;
use crate::process;
use crate::sample::Sample;
use harness::stdio::{Fifos, Stdio};
use harness::{Test, test};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

const ROUNDS: usize = 3;
const MIB: usize = 1 << 20;
const OUTPUT: usize = 1 << 10;
const TERMINAL: usize = 100;
const INPUT: usize = 20;

/// `{<contender>: {<way>: {mib, mib_per_s, cpu_s}}}`, the shim's CPU time alone.
pub fn measure(contenders: &[Contender]) -> Value {
    let ways: [(&str, usize); 3] = [
        ("stdout", OUTPUT),
        ("stdin and back", INPUT),
        ("terminal", TERMINAL),
    ];
    let mut samples: Vec<[(Sample, Sample); 3]> =
        contenders.iter().map(|_| Default::default()).collect();
    for round in 0..crate::rounds(ROUNDS) {
        for turn in 0..contenders.len() {
            let at = (turn + round) % contenders.len();
            for (way, (name, mib)) in ways.iter().enumerate() {
                let limit = Duration::from_secs(400);
                let contender = &contenders[at];
                let (time, cpu) =
                    test::measure(limit, async |test| pass(test, contender, name, *mib).await);
                samples[at][way].0.push(*mib as f64 / time.as_secs_f64());
                samples[at][way].1.push(cpu);
            }
        }
        eprintln!("bench: stdio, round {} of {ROUNDS} measured", round + 1);
    }
    let mut all = Map::new();
    for (contender, samples) in contenders.iter().zip(&samples) {
        let mut one = Map::new();
        for ((name, mib), (speed, cpu)) in ways.iter().zip(samples) {
            let value = json!({ "mib": mib, "mib_per_s": speed.json(), "cpu_s": cpu.json() });
            one.insert((*name).to_owned(), value);
        }
        all.insert(contender.key.to_owned(), one.into());
    }
    all.into()
}

/// From the container's Start to the last byte; and the shim's CPU time for that, in seconds.
async fn pass(test: &Test, contender: &Contender, way: &str, mib: usize) -> (Duration, f64) {
    let block = [
        "dd",
        "if=/dev/zero",
        "bs=65536",
        &format!("count={}", mib * 16),
    ]
    .join(" ");
    let bundle = match way {
        "stdin and back" => test.bundle("c").args(&["cat"]),
        "terminal" => test.bundle("c").sh(&block).terminal(),
        _ => test.bundle("c").sh(&block),
    };
    let fifos = Fifos::new(test.dir().join("io"));
    let pod = Pod::start(bundle.build(), contender).await;
    let open = pipe::OpenOptions::new();
    let stdout = open.open_receiver(fifos.stdout.path()).expect("stdout");
    let stderr = open.open_receiver(fifos.stderr.path()).expect("stderr");
    let create = pod.bundle.create();
    let create = match way {
        "stdin and back" => create.fifos(&fifos),
        "terminal" => create.stdio("", &fifos.stdout.name(), "").tty(),
        _ => create.output(&fifos),
    };
    pod.shim.create(create).await.expect("Create");
    let cpu = process::cpu(pod.shim.pid());
    let begin = Instant::now();
    pod.shim.start("c", "").await.expect("Start");
    let write = async {
        if way == "stdin and back" {
            let mut stdin = fifos.stdin.writer().await;
            let block = vec![b'x'; MIB];
            for _ in 0..mib {
                stdin.write(&block).await;
            }
            drop(stdin);
            pod.shim.close_io("c", "").await.expect("CloseIO");
        }
    };
    let ((), bytes) = tokio::join!(write, drain(stdout));
    let time = begin.elapsed();
    assert!(
        bytes >= mib * MIB,
        "{way} of {}: {bytes} bytes of {mib} MiB",
        contender.label
    );
    let cpu = process::cpu(pod.shim.pid()) - cpu;
    drop(stderr);
    pod.end().await;
    (time, cpu)
}

/// Reads to EOF, and counts.
async fn drain(mut end: pipe::Receiver) -> usize {
    let mut buffer = vec![0u8; MIB];
    let mut bytes = 0;
    loop {
        match end.read(&mut buffer).await.expect("read of a FIFO") {
            0 => return bytes,
            n => bytes += n,
        }
    }
}
