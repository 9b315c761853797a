// SPDX-License-Identifier: Apache-2.0
//! How long each step of a container's life takes, for each shim and for bare runc.

use crate::contender::{Contender, RUNC};
use crate::pod::Pod;
use crate::sample::Sample;
use harness::containerd::{self, IMAGE};
use harness::{Test, peers, test, wait};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const ROUNDS: usize = 40;
const CTR_ROUNDS: usize = 20;
/// What runc does takes up to twice as long when it has done nothing for a while: its first move
/// into a cgroup waits for a grace period of the kernel, further ones soon after do not. So each
/// step that runs it begins when that is over, whoever comes next.
const SETTLE: Duration = Duration::from_millis(80);

/// Samples of each step, in milliseconds.
type Steps = BTreeMap<&'static str, Sample>;

/// `{<contender>: {<step>: sample}}`; the contenders take turns, in another order each round.
pub fn steps(contenders: &[Contender]) -> Value {
    let limit = Duration::from_secs(600);
    let mut all: BTreeMap<&str, Steps> = BTreeMap::new();
    for round in 0..crate::rounds(ROUNDS) {
        test::measure(limit, async |test| {
            for turn in 0..=contenders.len() {
                match contenders.get((turn + round) % (contenders.len() + 1)) {
                    Some(contender) => {
                        let id = format!("{}-{round}", contender.key.replace('.', "-"));
                        life(test, contender, &id, all.entry(contender.key).or_default()).await;
                    }
                    None => {
                        bare(test, &format!("bare-{round}"), all.entry(RUNC).or_default()).await
                    }
                }
            }
        });
    }
    let steps = |steps: &Steps| {
        steps
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.json()))
            .collect::<Map<_, _>>()
    };
    all.iter()
        .map(|(key, value)| ((*key).to_owned(), Value::Object(steps(value))))
        .collect::<Map<_, _>>()
        .into()
}

/// Does `thing`, and notes how long it took.
async fn timed<T>(steps: &mut Steps, name: &'static str, thing: impl Future<Output = T>) -> T {
    let begin = Instant::now();
    let value = thing.await;
    steps.entry(name).or_default().time(begin.elapsed());
    value
}

async fn life(test: &Test, contender: &Contender, id: &str, steps: &mut Steps) {
    let bundle = test.bundle(id).build();
    let start = bundle.start().binary(&contender.binary);
    let answer = timed(steps, "start command", start.answer()).await;
    let pod = Pod {
        shim: harness::Shim::connect(&bundle, answer).await,
        bundle,
    };
    sleep(SETTLE).await;
    let begin = Instant::now();
    timed(steps, "create", pod.shim.create(pod.bundle.create()))
        .await
        .expect("Create");
    timed(steps, "start", pod.shim.start(id, ""))
        .await
        .expect("Start");
    steps
        .entry("create and start")
        .or_default()
        .time(begin.elapsed());
    for n in 0..2 {
        sleep(SETTLE).await;
        let cycle = pod.exec_cycle(&format!("e{n}")).await.expect("exec cycle");
        steps.entry("exec cycle").or_default().time(cycle);
        steps.entry("exec to its end").or_default().time(cycle);
    }
    timed(steps, "state", pod.shim.state(id, ""))
        .await
        .expect("State");
    let kill = pod.shim.kill(id, "", libc::SIGKILL, false);
    timed(steps, "kill", kill).await.expect("Kill");
    timed(steps, "wait after kill", pod.shim.wait(id, ""))
        .await
        .expect("Wait");
    timed(steps, "delete", pod.shim.delete(id, ""))
        .await
        .expect("Delete");
    pod.end().await;
}

/// Runs a command without stdio to its end, which must be a good one.
async fn run(command: &mut Command) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("a program");
    wait::ended(child.id() as i32).await;
    let status = child.wait().expect("wait");
    assert!(status.success(), "{command:?}: {status}");
}

/// Waits for the end of the process whose pid is in a file.
async fn ended(pid_file: &str) {
    let pid = std::fs::read_to_string(pid_file).expect("pid file");
    wait::ended(pid.trim().parse().expect("a pid")).await;
}

/// What the shim asks of runc, asked without a shim.
///
/// The flags are those that every caller must give, /dev/null is stdin, stdout and stderr in both,
/// and neither is in a cgroup of its own. To the floor's advantage: the mount of the root file
/// system is not in `create`, and `exec cycle` ends with runc, while a shim's goes on until it has
/// told the end of the process; `exec to its end` waits for that here, too.
async fn bare(test: &Test, id: &str, steps: &mut Steps) {
    let bundle = test.bundle(id).build();
    let rootfs = bundle.file("rootfs");
    let mount = |source: &std::path::Path| {
        let flags = nix::mount::MsFlags::MS_BIND | nix::mount::MsFlags::MS_REC;
        nix::mount::mount(Some(source), &rootfs, None::<&str>, flags, None::<&str>)
    };
    mount(peers::rootfs()).expect("bind mount");
    let root = test.runc_root();
    let runc = |action: &str, words: &[&str]| {
        let mut command = Command::new(peers::runc());
        let log = bundle.file("log.json");
        command
            .arg("--root")
            .arg(&root)
            .arg("--log")
            .arg(log)
            .args(["--log-format", "json"]);
        command.arg(action).args(words);
        command
    };
    let directory = bundle.path.to_string_lossy().into_owned();
    sleep(SETTLE).await;
    let begin = Instant::now();
    let create = [
        "--bundle",
        &directory,
        "--pid-file",
        &format!("{directory}/init.pid"),
        id,
    ];
    timed(steps, "create", run(&mut runc("create", &create))).await;
    timed(steps, "start", run(&mut runc("start", &[id]))).await;
    steps
        .entry("create and start")
        .or_default()
        .time(begin.elapsed());
    let process = bundle.file("process.json");
    let spec = harness::bundle::process(test, &["true"]);
    std::fs::write(&process, spec.to_string()).expect("process.json");
    for n in 0..2 {
        let pid_file = format!("{directory}/e{n}.pid");
        let process = process.to_string_lossy();
        let words = [
            "--process",
            &process,
            "--detach",
            "--pid-file",
            &pid_file,
            id,
        ];
        sleep(SETTLE).await;
        let begin = Instant::now();
        timed(steps, "exec cycle", run(&mut runc("exec", &words))).await;
        ended(&pid_file).await;
        steps
            .entry("exec to its end")
            .or_default()
            .time(begin.elapsed());
    }
    timed(steps, "kill", run(&mut runc("kill", &[id, "9"]))).await;
    ended(&format!("{directory}/init.pid")).await;
    timed(steps, "delete", run(&mut runc("delete", &[id]))).await;
    nix::mount::umount2(&rootfs, nix::mount::MntFlags::MNT_DETACH).expect("umount");
}

/// `ctr run --rm` of `true` on containerd 2.1: `{<contender>: sample}`; `null` without it.
pub fn ctr_run(contenders: &[Contender]) -> Value {
    let mut all: BTreeMap<&str, Sample> = BTreeMap::new();
    let ran = containerd::measure("2.1", |containerd| {
        for round in 0..crate::rounds(CTR_ROUNDS) {
            for turn in 0..contenders.len() {
                let contender = &contenders[(turn + round) % contenders.len()];
                let runtime = contender.binary.to_string_lossy().into_owned();
                let id = format!("{}-{round}", contender.key.replace('.', "-"));
                containerd.note(&id);
                let begin = Instant::now();
                let run = ["run", "--rm", "--runtime", &runtime, IMAGE, &id, "true"];
                containerd.ctr(&run).ok();
                all.entry(contender.key).or_default().time(begin.elapsed());
            }
        }
    });
    if !ran {
        return Value::Null;
    }
    all.iter()
        .map(|(key, value)| ((*key).to_owned(), value.json()))
        .collect::<Map<_, _>>()
        .into()
}

/// What was measured, for the report: units and number of rounds.
pub fn method() -> Value {
    json!({ "unit": "ms", "rounds": ROUNDS, "ctr rounds": CTR_ROUNDS })
}
