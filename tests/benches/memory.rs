// SPDX-License-Identifier: Apache-2.0
//! What a further shim costs in memory, and what happens to that with many shims and many execs.

use crate::contender::{Contender, OURS, RIVAL};
use crate::pod::Pod;
use crate::process::{self, Charged, Group};
use crate::sample::Sample;
use harness::runtime::Runtime;
use harness::{Test, proc, test, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Counts of further shims at which memory is read.
const POINTS: [usize; 6] = [10, 30, 100, 150, 200, 300];
/// As far as those go that are not compared at scale.
const FEW: usize = 100;
const EXECS: usize = 300;

/// `{<contender>: {points: [{shims, each: {all, user, kernel}, start_ms}], held, execs}}`, memory
/// in KiB: growth since the first shim for each further one, and the median latency from `start`
/// to the container's Start for the shims since the point before.
pub fn measure(contenders: &[Contender]) -> Value {
    let mut all = Map::new();
    for contender in contenders {
        let most = if [OURS, RIVAL].contains(&contender.key) {
            POINTS[5]
        } else {
            FEW
        };
        let one = test::measure(Duration::from_secs(600), async |test| {
            let points = many(test, contender, most).await;
            json!({ "points": points })
        });
        let execs = test::measure(Duration::from_secs(600), async |test| {
            after_execs(test, contender).await
        });
        let mut one = one;
        one["execs"] = execs;
        all.insert(contender.key.to_owned(), one);
        eprintln!("bench: memory of {} measured", contender.label);
    }
    all.into()
}

/// A shim in `group`, with its container elsewhere; so is the runtime, whose namespaces are the
/// container's and not the shim's.
async fn charged(
    test: &Test,
    contender: &Contender,
    group: &Group,
    runtime: &Runtime,
    id: &str,
) -> Pod {
    let bundle = test.bundle(id).build();
    let start = bundle.start().binary(&contender.binary).cgroup(&group.0);
    let pod = Pod {
        shim: start.shim().await,
        bundle,
    };
    pod.shim
        .create(runtime.create(&pod.bundle))
        .await
        .expect("Create");
    pod.shim.start(id, "").await.expect("Start");
    pod
}

fn elsewhere(test: &Test, group: &Group) -> Runtime {
    let root = group.0.parent().expect("a cgroup has a parent").display();
    let body = format!("echo $$ >{root}/cgroup.procs\nexec \"$RUNC\" \"$@\"");
    Runtime::script(test, "elsewhere", &body)
}

/// The same as long as it changes by more than 16 KiB between two looks: the kernel frees some
/// of what it used for a start a moment later.
async fn settled(group: &Group) -> Charged {
    let mut before = group.charged();
    let mut still = 0;
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    while still < 5 {
        tick.tick().await;
        let now = group.charged();
        still = if (now.all() - before.all()).abs() <= 16.0 {
            still + 1
        } else {
            0
        };
        before = now;
    }
    before
}

async fn many(test: &Test, contender: &Contender, most: usize) -> Vec<Value> {
    let group = Group::new(&format!("{}-shims", test.namespace()));
    let runtime = elsewhere(test, &group);
    let mut pods = vec![charged(test, contender, &group, &runtime, "c0").await];
    let first = settled(&group).await;
    let mut points = vec![json!({ "shims": 1, "held": process::held(pods[0].shim.pid()) })];
    for count in POINTS.into_iter().filter(|count| *count <= most) {
        let mut times = Sample::default();
        while pods.len() <= count {
            let begin = Instant::now();
            let id = format!("c{}", pods.len());
            pods.push(charged(test, contender, &group, &runtime, &id).await);
            times.time(begin.elapsed());
        }
        let each = settled(&group).await.each(first, count);
        let pid = pods[count].shim.pid();
        points.push(json!({ "shims": count, "each": each, "start": times.json(), "held": process::held(pid) }));
    }
    let pids: Vec<i32> = pods.iter().map(|pod| pod.shim.pid()).collect();
    for pod in pods {
        pod.end().await;
    }
    gone(&group, &pids).await;
    points
}

/// A tmpfs for bundles, which is where containerd's are (/run): other file systems go on to know the
/// names of files that are gone, and the kernel charges whoever looked for them.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).expect("directory of bundles");
        let (none, flags) = (None::<&str>, MsFlags::empty());
        mount(Some("tmpfs"), &path, Some("tmpfs"), flags, none).expect("tmpfs");
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Memory of one shim before and after many execs, in KiB.
async fn after_execs(test: &Test, contender: &Contender) -> Value {
    let _bundles = Tmpfs::mount(test.tasks_dir());
    let group = Group::new(&format!("{}-execs", test.namespace()));
    let runtime = elsewhere(test, &group);
    let pod = charged(test, contender, &group, &runtime, "c").await;
    let before = settled(&group).await;
    for n in 0..EXECS {
        pod.exec_cycle(&format!("e{n}")).await.expect("exec cycle");
    }
    let after = settled(&group).await;
    let pid = pod.shim.pid();
    let held = process::held(pid);
    pod.end().await;
    gone(&group, &[pid]).await;
    json!({ "count": EXECS, "growth": after.each(before, 1), "held": held })
}

/// Ends the shims that have not, and removes the cgroup.
async fn gone(group: &Group, shims: &[i32]) {
    for &pid in shims {
        if proc::alive(pid) {
            let _ = wait::signal(pid, libc::SIGKILL);
            wait::ended(pid).await;
        }
    }
    wait::until("an empty cgroup", || {
        std::fs::remove_dir(&group.0).map_err(|e| e.to_string())
    })
    .await;
}
