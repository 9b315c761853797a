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
/// Milliseconds within which watchers hear of one.
const SOON: u128 = 100;

/// A volume of a ConfigMap's, as atomic_writer.go of the kubelet's writes it.
struct ConfigMap {
    dir: PathBuf,
    number: usize,
}

impl ConfigMap {
    fn new(dir: PathBuf) -> Self {
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

fn volume(map: &ConfigMap, destination: &str) -> serde_json::Value {
    json!({"destination": destination, "type": "bind", "source": map.dir,
           "options": ["rbind", "rprivate", "ro"]})
}

/// Has inotifyd say of the directory /mnt: a line of the event and the name for each rename there, and what
/// the key is then.
const WATCH: &str = "\
    echo '#!/bin/sh' >/tmp/told; \
    echo 'echo \"$1 $3 $(cat /mnt/key)\"' >>/tmp/told; \
    chmod 755 /tmp/told; echo ready; exec inotifyd /tmp/told /mnt:y";

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
            assert_eq!(out.line().await, format!("y ..data {n}"));
            let took = begun.elapsed().as_millis();
            // The guest starts two programs for each, on an emulated processor that others use, too.
            late += usize::from(took > SOON);
            if n == SWAPS / 2 {
                let output = upgrade(test, &copy_of_the_binary(test, "a")).await;
                assert_eq!(output.code(), Some(0), "{output:?}");
            }
        }
        println!("{late} of {SWAPS} swaps were told after more than {SOON} ms");
        assert!(late < SWAPS / 20, "{late} were late");
        let list = "cd /mnt; for name in * ..[!.]*; do echo $name; done";
        let told = crate::said(&shim, &bundle, bundle.exec_sh("list", list)).await;
        assert_eq!(told, format!("key\n..2026_11_30.{SWAPS}\n..data\n"));
        shim.kill("c", "", 9, true).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
    });
}
