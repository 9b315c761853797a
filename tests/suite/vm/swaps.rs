// SPDX-License-Identifier: Apache-2.0
//! Volumes that the host swaps as a whole, as the kubelet does with those of a ConfigMap: what watchers in a
//! container hear of it.

use harness::stdio::{Fifos, Stdio};
use harness::upgrade::{copy_of_the_binary, upgrade};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

const SWAPS: usize = 1000;
/// Milliseconds within which watchers hear of one, unless the machine is busy.
const SOON: u128 = 100;

/// A volume of a ConfigMap's, as atomic_writer.go of the kubelet's writes it.
pub struct ConfigMap {
    dir: PathBuf,
    number: usize,
}

impl ConfigMap {
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir(&dir).expect("a new directory");
        let mut map = Self { dir, number: 0 };
        map.swap(&[("key", "0"), ("gone", "")]);
        map
    }

    fn swap(&mut self, files: &[(&str, &str)]) {
        let (old, new) = (self.data(), format!("..2026_11_30.{}", self.number));
        self.number += 1;
        fs::create_dir(self.dir.join(&new)).expect("a new directory");
        for (name, text) in files {
            let file = self.dir.join(&new).join(name);
            fs::write(&file, text).expect("a new file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("it is there");
        }
        symlink(&new, self.dir.join("..data_tmp")).expect("a new link");
        fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data")).expect("rename");
        for (name, _) in files {
            let _ = symlink(Path::new("..data").join(name), self.dir.join(name));
        }
        for entry in fs::read_dir(&self.dir).expect("it is there").flatten() {
            let name = entry.file_name().into_string().expect("a name");
            let stays = name.starts_with("..") || files.iter().any(|(file, _)| *file == name);
            if !stays {
                fs::remove_file(entry.path()).expect("a link");
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(self.dir.join(old)).expect("it was there");
        }
    }

    fn data(&self) -> Option<PathBuf> {
        fs::read_link(self.dir.join("..data")).ok()
    }
}

pub fn volume(map: &ConfigMap, destination: &str) -> serde_json::Value {
    json!({"destination": destination, "type": "bind", "source": map.dir,
           "options": ["rbind", "rprivate", "ro"]})
}

/// Says of each rename in the directory /mnt what it is of; with the host's libraries, as a container has none.
const WATCH: &str =
    "exec /tmp/lib/ld-linux-x86-64.so.2 --library-path /tmp/lib /tmp/probe watch /mnt 2>&1";

fn readonly(source: &Path, destination: &str) -> serde_json::Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"]})
}

/// V19: each of 1,000 swaps is told, in order, and soon; what is there then is the new. A key that is gone is
/// gone, and the upgrade of the shim changes nothing.
#[test]
fn each_swap_of_a_config_map_is_told() {
    crate::run(async |test| {
        let mut map = ConfigMap::new(test.dir().join("map"));
        let tmp = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"});
        let bundle = test
            .bundle("c")
            .mount(volume(&map, "/mnt"))
            .mount(tmp)
            .mount(readonly(Path::new("/lib/x86_64-linux-gnu"), "/tmp/lib"))
            .mount(readonly(
                Path::new(env!("CARGO_BIN_EXE_probe")),
                "/tmp/probe",
            ))
            .build();
        let shim = bundle.running().await;
        let look = "cat /mnt/key /mnt/gone; stat -c '%a %n' /mnt/..data/key; echo x >/mnt/key";
        let told = crate::said(&shim, &bundle, bundle.exec_sh("look", look)).await;
        assert_eq!(told, "0640 /mnt/..data/key\n");
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        shim.run(bundle.exec_sh("w", WATCH).output(&fifos)).await;
        assert_eq!(out.line().await, "ready");
        let mut late = 0;
        for n in 1..=SWAPS {
            let text = n.to_string();
            let begun = Instant::now();
            map.swap(&[("key", &text)]);
            assert_eq!(out.line().await, "..data");
            late += usize::from(begun.elapsed().as_millis() > SOON);
            if n % (SWAPS / 10) == 0 {
                let exec = bundle.exec_sh(&format!("r{n}"), "cat /mnt/key");
                assert_eq!(crate::said(&shim, &bundle, exec).await, text);
            }
            if n == SWAPS / 2 {
                let output = upgrade(test, &copy_of_the_binary(test, "a")).await;
                assert_eq!(output.code(), Some(0), "{output:?}");
            }
        }
        println!("{late} of {SWAPS} swaps were told after more than {SOON} ms");
        let list = "cd /mnt; for name in * ..[!.]*; do echo $name; done";
        let told = crate::said(&shim, &bundle, bundle.exec_sh("list", list)).await;
        assert_eq!(told, format!("key\n..2026_11_30.{SWAPS}\n..data\n"));
        shim.kill("c", "", 9, true).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
    });
}
