// SPDX-License-Identifier: Apache-2.0
//! What does not fit to a checkpoint is named, and there is no VM: neither one that boots instead, nor a
//! wrong one.

use super::{goes_on, request, restored, run, running, saved, shim, with_pipes, writable};
use harness::bundle::Bundle;
use harness::stdio::{Fifos, Stdio};
use harness::{Code, Shim, proc, refused, wait};
use nix::sys::stat::Mode;
use protos::task::CreateTaskRequest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What is no checkpoint, or not of this machine, is named in the error and in one line of the log, and
/// there is no VM: neither one that boots instead, nor a wrong one.
#[test]
fn what_does_not_fit_is_named_and_leaves_nothing() {
    run(async |test, config, image| {
        let bundle = test.bundle("c").build();
        let first = running(&bundle, config).await;
        saved(&first, "c", image).await;
        let file = |name: &str| image.join(name);
        let was = fs::read(file("manifest.json")).unwrap();
        let manifest = |change: &dyn Fn(&mut Value)| {
            let mut json = serde_json::from_slice(&was).unwrap();
            change(&mut json);
            fs::write(file("manifest.json"), json.to_string()).unwrap();
        };
        let machine = |field: &'static str, value: Value| {
            manifest(&|json| json["machine"][field] = value.clone());
        };
        let state = || File::options().write(true).open(file("state")).unwrap();
        let bad: [(&str, &dyn Fn(), &str); 14] = [
            (
                "format",
                &|| manifest(&|json| json["format"] = json!(99)),
                "format 99, and here is 1",
            ),
            (
                "qemu",
                &|| machine("qemu", json!("9.9.9")),
                "QEMU: it is of \"9.9.9\"",
            ),
            (
                "kernel",
                &|| machine("kernel", json!("0")),
                "kernel: it is of \"0\"",
            ),
            (
                "processor",
                &|| machine("processor", json!("x")),
                "processor: it is of \"x\"",
            ),
            (
                "vcpus",
                &|| machine("vcpus", json!(7)),
                "vcpus: it is of \"7\"",
            ),
            (
                "networks",
                &|| machine("networks", json!(1)),
                "network devices: it is of 1",
            ),
            (
                "mounts",
                &|| manifest(&|json| json["container"]["shown"] = json!([8])),
                "mounts: ",
            ),
            (
                "noise",
                &|| fs::write(file("manifest.json"), "{").unwrap(),
                "manifest.json: EOF",
            ),
            (
                "half",
                &|| fs::remove_file(file("manifest.json")).unwrap(),
                "No such file",
            ),
            (
                "changed",
                &|| state().write_all_at(b"x", 4096).unwrap(),
                "not what was written",
            ),
            (
                "stream",
                &|| {
                    state().write_all_at(b"none", 0).unwrap();
                    let hash = format!("{:x}", Sha256::digest(fs::read(file("state")).unwrap()));
                    manifest(&|json| json["sha256"] = json!(hash));
                },
                "Not a migration stream",
            ),
            (
                "cut",
                &|| state().set_len(1 << 20).unwrap(),
                "it is cut: 1048576 bytes of ",
            ),
            (
                "pipe",
                &|| pipe(&file("state")),
                "state: it is no regular file",
            ),
            (
                "pipes",
                &|| pipe(&file("manifest.json")),
                "manifest.json: it is no regular file",
            ),
        ];
        for (id, spoil, why) in bad {
            fs::write(file("manifest.json"), &was).unwrap();
            spoil();
            let bundle = test.bundle(id).build();
            let shim = shim(&bundle, config).await;
            let no = refused(shim.create(restored(bundle.create(), image)).await);
            assert!(no.message.contains(why), "{id}: {no}");
            let log = shim.log();
            let told = log.matches("not restored from ").count();
            // As the log quotes it.
            let why = why.replace('"', "\\\"");
            assert!(told == 1 && log.contains(&why), "{id}: {log}");
            shim.stopped().await;
        }
    });
}

/// Instead of the file, one that nobody writes to.
fn pipe(path: &Path) {
    fs::remove_file(path).unwrap();
    nix::unistd::mkfifo(path, Mode::S_IRUSR).unwrap();
}

/// A file that the guest knew is another, or gone: that is no guest to go on.
#[test]
fn a_file_that_is_not_what_it_was_is_named() {
    run(async |test, config, image| {
        let script = "echo 1 >/held; exec 5</held; echo held; \
                      trap 'exec 5</held; echo held again' USR2; while :; do sleep 0.1; done";
        let build = |id: &str| writable(test, id, script).build();
        let bundle = build("c");
        let first = shim(&bundle, config).await;
        let (_fifos, mut out, _err) = with_pipes((&first, &bundle), false, None).await;
        first.start("c", "").await.unwrap();
        assert_eq!(out.line().await, "held");
        // A file without a name can't be found again.
        first
            .run(bundle.exec_sh("rm", "mv /held /away && rm /away && echo 1 >/held"))
            .await;
        first.wait("c", "rm").await.unwrap();
        let no = refused(first.checkpoint(request("c", image, true)).await);
        assert!(
            no.message
                .contains("1 files are removed, and open in the guest"),
            "{no}"
        );
        assert!(!image.exists());
        first.kill("c", "", 12, false).await.unwrap();
        assert_eq!(out.line().await, "held again");
        saved(&first, "c", image).await;
        fs::write(test.dir().join("upper/held"), "another\n").unwrap();
        let bundle = build("other");
        let shim = shim(&bundle, config).await;
        is_refused(&shim, &bundle, image, "held\" is not what it was").await;
        fs::remove_file(test.dir().join("upper/held")).unwrap();
        let bundle = build("none");
        is_refused(&shim, &bundle, image, "No such file").await;
        shim.stopped().await;
    });
}

/// Create is refused, and `why`; its pipes are those of a container with output.
async fn is_refused(shim: &Shim, bundle: &Bundle, image: &Path, why: &str) {
    let fifos = Fifos::new(bundle.test.dir().join(format!("io-{}", bundle.id)));
    let _readers = fifos.readers();
    let create = restored(bundle.create().output(&fifos), image);
    does_not_fit(shim, create, why).await;
}

/// Create is refused, and `why`; there is no VM, and no container.
async fn does_not_fit(shim: &Shim, create: CreateTaskRequest, why: &str) {
    let id = create.id.clone();
    let no = refused(shim.create(create).await);
    assert!(no.message.contains(why), "{no}");
    assert_eq!(refused(shim.state(&id, "").await).code, Code::NotFound);
    assert_eq!(proc::children(shim.pid()), [0; 0], "{why}");
    assert!(!shim.bundle().test.vm_dir(&id).exists(), "{why}");
}

/// A process has the streams that it had, each or none.
#[test]
fn other_streams_are_named() {
    run(async |test, config, image| {
        let one = test.bundle("c").sh("read x; exit 5").build();
        let first = shim(&one, config).await;
        let (_fifos, _out, _err) = with_pipes((&first, &one), true, None).await;
        first.start("c", "").await.unwrap();
        saved(&first, "c", image).await;
        let bundle = test.bundle("again").build();
        let shim = shim(&bundle, config).await;
        let fifos = Fifos::new(test.dir().join("io-again"));
        let (_out, _err) = fifos.readers();
        let mut input = None;
        let all = bundle.create().fifos(&fifos);
        let without = |change: &dyn Fn(&mut CreateTaskRequest)| {
            let mut request = restored(all.clone(), image);
            change(&mut request);
            request
        };
        for (request, why) in [
            (
                without(&|r| r.stdin.clear()),
                "stdin: the process that goes on has one",
            ),
            (
                without(&|r| r.stdout.clear()),
                "stdout: the process that goes on has one",
            ),
            (
                without(&|r| r.stderr.clear()),
                "stderr: the process that goes on has one",
            ),
            (
                without(&|r| r.terminal = true),
                "terminal: the process that goes on has none",
            ),
        ] {
            does_not_fit(&shim, request, why).await;
        }
        shim.create(without(&|_| ())).await.unwrap();
        shim.start("again", "").await.unwrap();
        input.insert(fifos.stdin.writer().await).write("x\n").await;
        assert_eq!(shim.wait("again", "").await.unwrap().exit_status, 5);
        shim.delete("again", "").await.unwrap();
    });
}

/// Each volume is where it was, and there; what is in one may be another by then.
#[test]
fn other_mounts_are_named() {
    run(async |test, config, image| {
        let volume = |name: &str, at: &str| {
            let source = test.dir().join(name);
            json!({"destination": at, "type": "bind", "source": source, "options": ["rbind", "rw"]})
        };
        for name in ["a", "b"] {
            fs::create_dir(test.dir().join(name)).unwrap();
            fs::write(test.dir().join(name).join("in"), name).unwrap();
        }
        fs::write(test.dir().join("file"), "file").unwrap();
        let script = "exec 5</home/in; trap 'cat /home/in /mnt/in >/mnt/all' USR1; \
                      echo >/mnt/ready; while :; do sleep 0.1; done";
        let with = |id: &str, mounts: &[(&str, &str)]| {
            let bundle = test.bundle(id).sh(script);
            let mounts = mounts.iter().map(|(name, at)| volume(name, at));
            mounts.fold(bundle, harness::bundle::Builder::mount).build()
        };
        let was = [("a", "/home"), ("b", "/mnt"), ("file", "/etc/passwd")];
        let first = running(&with("c", &was), config).await;
        let ready = test.dir().join("b/ready");
        wait::until("it listens", || {
            ready.exists().then_some(()).ok_or("no".into())
        })
        .await;
        saved(&first, "c", image).await;
        fs::write(test.dir().join("b/in"), "another").unwrap();
        let other = "mounts: they are not those";
        let [a, b, file] = was;
        let sets: [(&[(&str, &str)], &str); 6] = [
            (&[a, b], other),
            (&[a, b, file, ("b", "/tmp")], other),
            (&[a, ("b", "/tmp"), file], other),
            (&[a, b, ("file", "/etc/group")], other),
            (&[a, file, b], other),
            (&[a, ("gone", "/mnt"), file], "gone: No such file"),
        ];
        for (n, (mounts, why)) in sets.into_iter().enumerate() {
            let bundle = with(&format!("other{n}"), mounts);
            let shim = shim(&bundle, config).await;
            does_not_fit(&shim, restored(bundle.create(), image), why).await;
            shim.stopped().await;
        }
        let bundle = with("again", &was);
        let shim = goes_on(&bundle, config, image).await;
        shim.kill("again", "", libc::SIGUSR1, false).await.unwrap();
        let all = test.dir().join("b/all");
        wait::until("what it reads", || match fs::read_to_string(&all) {
            Ok(text) if text == "aanother" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        shim.stopped().await;
    });
}
