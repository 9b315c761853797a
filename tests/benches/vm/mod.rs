// SPDX-License-Identifier: Apache-2.0
//! Containers in a VM: where the time of a boot goes, beside a bare one of the same kernel, and
//! what an idle VM holds.

mod bare;
mod density;
mod files;
mod table;
mod template;

use crate::rounds;
use crate::sample::Sample;
use files::Files;
use harness::inspect::Stopped;
use harness::pool::Pool;
use harness::stdio::{Fifos, Stdio};
use harness::{Bundle, Shim, Test, peers, proc, test};
use protos::Message;
use serde_json::{Map, Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
pub use table::table;
use template::Templates;

const ROUNDS: usize = 15;
/// MiB of the VMs whose memory is looked at.
const SIZES: [u64; 2] = [128, 256];
const FLAVOURS: [&str; 2] = ["distro", "tuned"];
/// The lines of `check` that tell a step.
const STEPS: [&str; 6] = ["qemu", "kernel", "agent", "create", "first output", "all"];
/// Of an exec in a VM that runs.
const EXECS: usize = 3;
const CALLS: [&str; 4] = ["Exec", "Start", "Wait", "Delete"];

/// `{<flavour>: {bare, steps: {<step of check>}, shim, pool, exec, calls: {<call of an exec>}, memory:
/// {<MiB>: {rss, pss}}, own, files, held: {<VMs>: <KiB>}, template: {shim, restore, held}}, qemu}`, times in ms and memory in KiB: `shim` is from `start` to the first
/// output, `exec` all calls of an exec, `own` the shim's private memory. Flavours, and what is
/// measured of each, take turns; `pool` is `shim` with a VM of the pool's. Without KVM, so that it is the same
/// everywhere.
pub fn measure() -> Value {
    let images = peers::workspace().join("target/dist/guest");
    let there = |flavour: &&str| images.join(flavour).join("guest.toml").exists();
    let flavours: Vec<&str> = FLAVOURS.into_iter().filter(there).collect();
    test::measure(Duration::from_secs(1200), async |test| {
        let initrd = bare::initrd(test.dir());
        let mut all: Vec<Flavour> = flavours
            .iter()
            .map(|name| Flavour::new(test, name))
            .collect();
        for round in 0..rounds(ROUNDS) {
            for flavour in &mut all {
                let image = images.join(flavour.name);
                flavour.bare.time(bare::boot(&image, &initrd));
                flavour.check();
                flavour.container(test, round).await;
                flavour.pool(test, round).await;
                if let Some(templates) = &mut flavour.templates {
                    let id = format!("{}-template-{round}", flavour.name);
                    templates.round(test, &id).await;
                }
            }
        }
        for flavour in &mut all {
            for size in SIZES {
                flavour.idle(test, size).await;
            }
            flavour.files.measure(test, flavour.name).await;
            let booted = format!("{}-booted", flavour.name);
            flavour.held = density::measure(test, &booted, &flavour.config).await;
            if let Some(templates) = &mut flavour.templates {
                templates.density(test, flavour.name).await;
            }
        }
        let all = all.into_iter().map(|of| (of.name.to_owned(), of.json()));
        let qemu = ("qemu".to_owned(), json!(qemu_version()));
        Value::Object(all.chain([qemu]).collect())
    })
}

/// As it says itself.
fn qemu_version() -> String {
    let said = Command::new(bare::qemu()).arg("--version").output();
    let said = String::from_utf8_lossy(&said.expect("QEMU").stdout).into_owned();
    let words: Vec<&str> = said.split_whitespace().take(4).collect();
    words.join(" ")
}

struct Flavour {
    name: &'static str,
    /// A configuration with this image alone.
    config: String,
    bare: Sample,
    steps: [Sample; STEPS.len()],
    shim: Sample,
    pool: Sample,
    exec: Sample,
    calls: [Sample; CALLS.len()],
    own: Sample,
    memory: Map<String, Value>,
    files: Files,
    held: Value,
    templates: Option<Templates>,
}

impl Flavour {
    fn new(test: &Test, name: &'static str) -> Self {
        let dir = test.dir().join(name);
        fs::create_dir(&dir).expect("a new directory");
        let image = peers::workspace().join("target/dist/guest").join(name);
        symlink(image, dir.join(name)).expect("a new link");
        let config = dir.join("shim-vm.toml");
        let text = format!(
            "accel = \"tcg\"\nimage = \".\"\nqemu = {:?}\n",
            bare::qemu()
        );
        fs::write(&config, text).expect("a configuration");
        let config = config.to_string_lossy().into_owned();
        Self {
            name,
            files: Files::new(&config),
            held: Value::Null,
            templates: Templates::new(&dir, &config),
            config,
            bare: Sample::default(),
            steps: Default::default(),
            shim: Sample::default(),
            pool: Sample::default(),
            exec: Sample::default(),
            calls: Default::default(),
            own: Sample::default(),
            memory: Map::new(),
        }
    }

    /// What the shim says of itself.
    fn check(&mut self) {
        let mut check = Command::new(peers::vm_shim());
        check.arg("check").env("DUNNAGE_VM_CONFIG", &self.config);
        let output = check.output().expect("check");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        for (step, sample) in STEPS.iter().zip(&mut self.steps) {
            let number = |line: &str| {
                let (number, _) = line.strip_prefix(step)?.split_once(" ms ")?;
                number.trim().parse().ok()
            };
            let ms = text.lines().find_map(number);
            sample.push(ms.unwrap_or_else(|| panic!("no step {step}: {text}")));
        }
    }

    /// The same of a VM that is in store.
    async fn pool(&mut self, test: &Test, round: usize) {
        let base = fs::read_to_string(&self.config).expect("the configuration");
        let image = format!(
            "image = {:?}",
            Path::new(&self.config).parent().expect("a file")
        );
        let base = base.replace("image = \".\"", &image);
        let pool = Pool::start(test.dir(), &base, "size = 1");
        pool.has(1);
        // What is taken is not followed by a boot while that is measured.
        let stopped = Stopped::new(pool.pid());
        let id = format!("{}-pool-{round}", self.name);
        let (shim, took) = first_output(test, &id, &pool.config.to_string_lossy()).await;
        let vm = shim.state(&id, "").await.expect("State").pid as i32;
        let holder = proc::stat(vm).expect("QEMU").ppid;
        assert_ne!(holder, shim.pid(), "taken, and not booted");
        self.pool.time(took);
        drop(stopped);
        shim.stopped().await;
    }

    /// From the shim's `start` to what the container says first.
    async fn container(&mut self, test: &Test, round: usize) {
        let id = format!("{}-{round}", self.name);
        let (shim, took) = first_output(test, &id, &self.config).await;
        let bundle = shim.bundle().clone();
        self.shim.time(took);
        self.own.push(proc::private_dirty(shim.pid()) as f64);
        for n in 0..EXECS {
            self.exec(&shim, &bundle, &format!("e{n}")).await;
        }
        shim.stopped().await;
    }

    /// An exec of `true`: added, started, waited for and deleted.
    async fn exec(&mut self, shim: &Shim, bundle: &Bundle, exec: &str) {
        let id = &bundle.id;
        let mut at = vec![Instant::now()];
        shim.exec(bundle.exec(exec, &["true"])).await.expect("Exec");
        at.push(Instant::now());
        shim.start(id, exec).await.expect("Start");
        at.push(Instant::now());
        shim.wait(id, exec).await.expect("Wait");
        at.push(Instant::now());
        shim.delete(id, exec).await.expect("Delete");
        at.push(Instant::now());
        for (sample, pair) in self.calls.iter_mut().zip(at.windows(2)) {
            sample.time(pair[1] - pair[0]);
        }
        self.exec.time(at[CALLS.len()] - at[0]);
    }

    /// What QEMU holds while a container sleeps in a VM of this size.
    async fn idle(&mut self, test: &Test, size: u64) {
        let id = format!("{}-{size}", self.name);
        let memory = ("io.dunnage.vm.memory", size.to_string());
        let bundle = test.bundle(&id).annotation(memory.0, &memory.1).build();
        let start = bundle.start().binary(&peers::vm_shim());
        let shim = start.env("DUNNAGE_VM_CONFIG", &self.config).shim().await;
        shim.create(bundle.create()).await.expect("Create");
        shim.start(&id, "").await.expect("Start");
        let stats = shim.stats(&id).await.expect("Stats").stats.expect("stats");
        let metrics = protos::vm::Metrics::decode(stats.value.as_slice()).expect("metrics");
        let vmm = metrics.host.and_then(|host| host.vmm).expect("QEMU");
        let rss = proc::status(vmm.pid as i32, "VmRSS");
        let held = json!({ "rss": rss, "pss": vmm.memory / 1024 });
        self.memory.insert(size.to_string(), held);
        shim.stopped().await;
    }

    fn json(self) -> Value {
        let named = |names: &[&str], samples: &[Sample]| -> Map<String, Value> {
            let pairs = names.iter().zip(samples);
            pairs
                .map(|(name, sample)| ((*name).to_owned(), sample.json()))
                .collect()
        };
        json!({
            "bare": self.bare.json(),
            "steps": named(&STEPS, &self.steps),
            "shim": self.shim.json(),
            "pool": self.pool.json(),
            "exec": self.exec.json(),
            "calls": named(&CALLS, &self.calls),
            "own": self.own.json(),
            "memory": self.memory,
            "files": self.files.json(),
            "held": self.held,
            "template": self.templates.map(Templates::json),
        })
    }
}

/// A shim with a container that has said something and sleeps; how long that took from `start` on.
async fn first_output(test: &Test, id: &str, config: &str) -> (Shim, Duration) {
    let bundle = test.bundle(id).sh("echo up; exec sleep 100000").build();
    let fifos = Fifos::new(test.dir().join(format!("io-{id}")));
    let (mut out, _err) = fifos.readers();
    let begin = Instant::now();
    let start = bundle.start().binary(&peers::vm_shim());
    let shim = start.env("DUNNAGE_VM_CONFIG", config).shim().await;
    let create = shim.create(bundle.create().output(&fifos));
    create.await.expect("Create");
    shim.start(id, "").await.expect("Start");
    assert_eq!(out.line().await, "up");
    (shim, begin.elapsed())
}
