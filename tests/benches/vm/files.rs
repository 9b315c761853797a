// SPDX-License-Identifier: Apache-2.0
//! Work with files in one VM: in a root filesystem of the host's, which the file server shares, and in an
//! ext4 that the guest has for itself (`writable = "file"`); beside a container of shim-runc.
//!
//! All three have the same overlay, on the same filesystem of the host's. The guest keeps nothing of it where
//! it is said so.

use crate::rounds;
use crate::sample::Sample;
use harness::{Bundle, Shim, Test, peers};
use protos::types::Mount;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const GROUP: &str = "io.containerd.runc.v2.group";
const ROUNDS: usize = 5;
/// Files of 2 KiB that are made, in directories of 50.
const FILES: usize = 1000;
const IN_ONE: usize = 50;

/// What is done in /work, in this order: a name, whether the guest forgets all first, and how.
pub const WORK: [(&str, bool, &str); 8] = [
    (
        "1,000 files made, as tar does",
        false,
        "tar -xf /files.tar -C /work",
    ),
    (
        "looked at, as `git status` does",
        true,
        "find /work -type f -size +9",
    ),
    ("looked at again", false, "find /work -type f -size +9"),
    ("read", true, "find /work -type f -exec cat {} + >/dev/null"),
    (
        "20 files written, each with fsync",
        false,
        "for n in $(seq 20); do dd if=/bin/busybox of=/work/s bs=2k count=1 conv=fsync; done 2>&1",
    ),
    (
        "64 MiB written, with fsync",
        false,
        "dd if=/dev/zero of=/work/big bs=1M count=64 conv=fsync 2>&1",
    ),
    (
        "64 MiB read",
        true,
        "dd if=/work/big of=/dev/null bs=1M 2>&1",
    ),
    ("1,000 files removed", true, "rm -rf /work/*"),
];
/// Whose files they are.
pub const PLACES: [&str; 3] = ["share", "disk", "host"];

pub struct Files {
    config: String,
    places: [[Sample; WORK.len()]; PLACES.len()],
}

impl Files {
    pub fn new(config: &str) -> Self {
        Self {
            config: config.to_owned(),
            places: Default::default(),
        }
    }

    pub async fn measure(&mut self, test: &Test, name: &str) {
        let dir = test.dir().join(format!("files-{name}"));
        let lower = lower(&dir);
        let group = format!("{name}-files");
        let bundles = PLACES.map(|place| {
            let builder = test.bundle(&format!("{group}-{place}"));
            let builder = match place {
                "host" => builder,
                "disk" => builder
                    .annotation(GROUP, &group)
                    .annotation("io.dunnage.vm.writable", "file"),
                _ => builder.annotation(GROUP, &group),
            };
            builder
                .rootfs(vec![overlay(&dir.join(place), &lower)])
                .set("/root/readonly", json!(false))
                .set("/linux/readonlyPaths", json!([]))
                .build()
        });
        let start = bundles[0].start().binary(&peers::vm_shim());
        let vm = start.env("DUNNAGE_VM_CONFIG", &self.config).shim().await;
        let host = bundles[2].start().binary(peers::shim()).shim().await;
        let shims = [&vm, &vm, &host];
        for (shim, bundle) in shims.into_iter().zip(&bundles) {
            shim.create(bundle.create()).await.expect("Create");
            shim.start(&bundle.id, "").await.expect("Start");
            done(shim, bundle, "mkdir", "mkdir /work").await;
        }
        for round in 0..rounds(ROUNDS) {
            for (n, (_, fresh, script)) in WORK.iter().enumerate() {
                for (place, samples) in self.places.iter_mut().enumerate() {
                    let (shim, bundle) = (shims[place], &bundles[place]);
                    if *fresh && PLACES[place] != "host" {
                        let forget = "sync; echo 3 >/proc/sys/vm/drop_caches";
                        done(shim, bundle, &format!("f{round}-{n}"), forget).await;
                    }
                    let begin = Instant::now();
                    done(shim, bundle, &format!("e{round}-{n}"), script).await;
                    samples[n].time(begin.elapsed());
                }
            }
        }
        for shim in [vm, host] {
            shim.stopped().await;
        }
    }

    /// `{<place>: {<work>: sample}}`, in ms, each with an exec's own time.
    pub fn json(self) -> Value {
        let places = PLACES.into_iter().zip(&self.places);
        let places = places.map(|(place, samples)| {
            let of = WORK.iter().zip(samples);
            let of = of.map(|((name, ..), sample)| ((*name).to_owned(), sample.json()));
            (place.to_owned(), Value::Object(of.collect()))
        });
        Value::Object(places.collect::<Map<_, _>>())
    }
}

/// An exec that must succeed, from its first call to its last.
async fn done(shim: &Shim, bundle: &Bundle, exec: &str, script: &str) {
    let request = bundle.exec_sh(exec, script);
    shim.exec(request).await.expect("Exec");
    shim.start(&bundle.id, exec).await.expect("Start");
    let ended = shim.wait(&bundle.id, exec).await.expect("Wait");
    assert_eq!(ended.exit_status, 0, "{}: {script}", bundle.id);
    shim.delete(&bundle.id, exec).await.expect("Delete");
}

/// The tests' root filesystem, below a layer with an archive of the files.
fn lower(dir: &Path) -> String {
    let (tree, layer) = (dir.join("tree"), dir.join("layer"));
    fs::create_dir_all(&layer).expect("a new directory");
    for n in 0..FILES {
        let dir = tree.join(format!("d{}", n / IN_ONE));
        fs::create_dir_all(&dir).expect("a new directory");
        fs::write(dir.join(format!("f{n}")), vec![n as u8; 2048]).expect("a file");
    }
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(&tree)
        .arg("-cf")
        .arg(layer.join("files.tar"));
    assert!(tar.arg(".").status().expect("tar").success());
    format!("{}:{}", layer.display(), peers::rootfs().display())
}

fn overlay(dir: &Path, lower: &str) -> Mount {
    let [upper, work] = ["fs", "work"].map(|name| dir.join(name));
    for dir in [&upper, &work] {
        fs::create_dir_all(dir).expect("a new directory");
    }
    Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
            format!("lowerdir={lower}"),
        ],
        ..Default::default()
    }
}
