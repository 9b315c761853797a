// SPDX-License-Identifier: Apache-2.0
//! VMs over minutes: a hundred one after another, and one whose clock is wrong.

use harness::bundle::RANDOM;
use harness::stdio::{Fifos, Stdio};
use harness::{peers, proc, wait};
use protos::task::WaitRequest;
use serde_json::json;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The clock is compared every minute.
const CLOCK: Duration = Duration::from_secs(90);
const BOOTS: usize = 100;
const RESTORES: usize = 200;
/// Six times what they take on an idle machine without KVM.
const LIMIT: Duration = Duration::from_secs(1200);

#[test]
fn a_hundred_boots_in_a_row_all_end_well() {
    harness::run_alone_within(LIMIT, async |test| {
        let (mut first, mut whole) = (Vec::new(), Vec::new());
        let mut most = 0;
        for n in 0..BOOTS {
            let id = format!("c{n}");
            let bundle = test.bundle(&id).sh("echo up; read x; exit 7").build();
            let fifos = Fifos::new(test.dir().join(format!("io-{id}")));
            let (mut out, _err) = fifos.readers();
            let began = Instant::now();
            let shim = bundle.start().binary(&peers::vm_shim()).shim().await;
            shim.create(bundle.create().fifos(&fifos)).await.unwrap();
            shim.start(&id, "").await.unwrap();
            assert_eq!(out.line().await, "up", "boot {n}");
            first.push(began.elapsed());
            most = most.max(proc::private_dirty(shim.pid()));
            fifos.stdin.writer().await.write("go\n").await;
            assert_eq!(shim.wait(&id, "").await.unwrap().exit_status, 7, "boot {n}");
            shim.delete(&id, "").await.unwrap();
            assert!(!test.vm_dir(&id).exists());
            assert_eq!(proc::children(shim.pid()), Vec::<i32>::new());
            shim.stopped().await;
            whole.push(began.elapsed());
        }
        first.sort();
        whole.sort();
        let last = BOOTS - 1;
        println!(
            "{BOOTS} boots in a row: first output after {:.2?} (median), {:.2?} (p99), \
             {:.2?} (most); to the end of the shim {:.2?} (median); \
             {most} KiB private memory of a shim at most",
            first[last / 2],
            first[last * 99 / 100],
            first[last],
            whole[last / 2],
        );
    });
}

/// Two hundred VMs of one template, one after another: none hangs, none ends otherwise than its container,
/// and nothing that is random there is the same in two of them.
/// It takes QEMU 10 or later.
#[test]
fn two_hundred_restores_in_a_row_all_end_well() {
    harness::run_alone_within(LIMIT, async |test| {
        let config = test.dir().join("templates.toml");
        let ours = std::env::var("DUNNAGE_VM_CONFIG").expect("set");
        let text = std::fs::read_to_string(&ours).expect("a configuration");
        let own = std::path::Path::new(&ours).parent().expect("a file");
        let text = text.replace("\"../", &format!("\"{}/../", own.display()));
        std::fs::write(&config, format!("{text}\ntemplates = true\nmemory = 240\n")).unwrap();
        let config = config.to_string_lossy().into_owned();
        let mut maker = Command::new(peers::vm_shim());
        let maker = maker.arg("template").env("DUNNAGE_VM_CONFIG", &config);
        let made = maker.output().expect("the maker");
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{said}");
        let (mut first, mut seen) = (Vec::new(), BTreeSet::new());
        let script = format!("echo up; {RANDOM}; read x; exit 7");
        for n in 0..RESTORES {
            let id = format!("c{n}");
            let bundle = test.bundle(&id).sh(&script).build();
            let fifos = Fifos::new(test.dir().join(format!("io-{id}")));
            let (mut out, _err) = fifos.readers();
            let began = Instant::now();
            let start = bundle.start().binary(&peers::vm_shim());
            let shim = start.env("DUNNAGE_VM_CONFIG", &config).shim().await;
            shim.create(bundle.create().fifos(&fifos)).await.unwrap();
            shim.start(&id, "").await.unwrap();
            assert_eq!(out.line().await, "up", "restore {n}");
            first.push(began.elapsed());
            for _ in 0..4 {
                let line = out.line().await;
                assert!(seen.insert(line.clone()), "restore {n} has {line}, too");
            }
            fifos.stdin.writer().await.write("go\n").await;
            assert_eq!(
                shim.wait(&id, "").await.unwrap().exit_status,
                7,
                "restore {n}"
            );
            shim.delete(&id, "").await.unwrap();
            assert!(shim.log().is_empty(), "restore {n}: {}", shim.log());
            shim.stopped().await;
        }
        first.sort();
        let last = RESTORES - 1;
        println!(
            "{RESTORES} restores in a row: first output after {:.2?} (median), {:.2?} (p99), {:.2?} (most)",
            first[last / 2],
            first[last * 99 / 100],
            first[last],
        );
    });
}

/// V9: somebody in the guest sets its clock to 1970, and the host sets it right.
#[test]
fn a_clock_that_is_wrong_is_set_right_within_a_minute() {
    harness::run_alone(async |test| {
        let script = "date -s @1000 >/dev/null && echo wrong; \
                      while [ $(date +%s) -lt 1000000 ]; do sleep 1; done; date +%s";
        let mut process = harness::bundle::process(test, &["sh", "-c", script]);
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = json!(["CAP_SYS_TIME"]);
        }
        let bundle = test.bundle("c").build();
        let shim = bundle.start().binary(&peers::vm_shim()).shim().await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let began = Instant::now();
        shim.run(bundle.exec_spec("e", &process).output(&fifos))
            .await;
        assert_eq!(out.line().await, "wrong");
        let request = WaitRequest {
            id: "c".into(),
            exec_id: "e".into(),
        };
        let client = shim.client();
        let ended = client.call_as(shim.service(), &request, None);
        let ended = wait::within(CLOCK, "the right time", ended).await;
        assert_eq!(ended.unwrap().exit_status, 0);
        let right: u64 = out.line().await.parse().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(now.as_secs() - right < 60, "{right}, not {now:?}");
        println!(
            "a wrong clock was right again after {:.1?}",
            began.elapsed()
        );
    });
}
