// SPDX-License-Identifier: Apache-2.0
//! Limits, metrics, the freezer and running out of memory: the guest's cgroup of version 2.

use crate::said;
use harness::events::{Event, Kind};
use harness::stdio::{Fifos, Stdio};
use harness::{Shim, proc, wait};
use protos::Message;
use protos::cgroups::v2::Metrics;
use protos::task_types::Status as State;
use serde_json::json;

async fn metrics(shim: &Shim) -> Metrics {
    let any = shim.stats("c").await.unwrap().stats.expect("stats");
    assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
    Metrics::decode(any.value.as_slice()).unwrap()
}

/// The VM's processes are told with the container's numbers, in the same bytes; the shim keeps the
/// promise of one thread and 2 MiB.
#[test]
fn stats_tell_what_the_vm_costs_the_host() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let told = async || {
            let any = shim.stats("c").await.unwrap().stats.expect("stats");
            let metrics = protos::vm::Metrics::decode(any.value.as_slice()).unwrap();
            metrics.host.expect("the host's part")
        };
        let host = told().await;
        let vmm = host.vmm.expect("QEMU");
        assert_eq!(vmm.pid, shim.state("c", "").await.unwrap().pid);
        assert!(vmm.memory > 48 << 20, "{vmm:?}");
        assert!(vmm.cpu_usec > 100_000, "it has booted: {vmm:?}");
        let files = host.files.expect("the file server");
        assert_eq!(proc::words(files.pid as i32, "cmdline")[1], "fsd");
        assert!(files.memory > 0 && files.cpu_usec > 0, "{files:?}");
        let own = host.shim.expect("the shim");
        assert_eq!(own.pid as i32, shim.pid());
        assert!(own.memory > 0 && own.cpu_usec > 0, "{own:?}");
        assert!(metrics(&shim).await.memory.expect("memory").usage < vmm.memory);

        // Work in the guest is work of QEMU's.
        shim.run(bundle.exec_sh("busy", "while :; do :; done"))
            .await;
        let works = async {
            while told().await.vmm.expect("QEMU").cpu_usec < vmm.cpu_usec + 200_000 {
                tokio::task::yield_now().await;
            }
        };
        wait::soon("200 ms of work", works).await;

        let threads = || proc::stat(shim.pid()).unwrap().threads;
        wait::until("one thread", || match threads() {
            1 => Ok(()),
            more => Err(more.to_string()),
        })
        .await;
        let private = proc::private_dirty(shim.pid());
        assert!(private <= 2048, "private memory of the shim: {private} KiB");
    });
}

fn ooms(event: &Event, container: &str) -> Option<()> {
    matches!(&event.kind, Kind::Oom(oom) if oom.container_id == container).then_some(())
}

/// Limits reach the guest's kernel, metrics are its numbers, a paused container uses no time,
/// TaskOOM comes before TaskExit (V10); all in one VM.
#[test]
fn limits_metrics_and_oom_are_the_guests() {
    crate::run(async |test| {
        let namespaces = ["pid", "ipc", "uts", "mount", "cgroup"].map(|n| json!({ "type": n }));
        let group = "io.containerd.runc.v2.group";
        let bundle = test
            .bundle("c")
            .annotation(group, "g")
            .set("/linux/namespaces", json!(namespaces))
            .set("/linux/resources/pids/limit", json!(20))
            .set(
                "/linux/resources/cpu",
                json!({"quota": 50_000, "period": 100_000}),
            )
            .memory_limit(48 << 20)
            .mount(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}))
            .mount(
                json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                          "options": ["ro"]}),
            )
            .build();
        let shim = bundle.running().await;
        let limits = "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max";
        let told = said(&shim, &bundle, bundle.exec_sh("limits", limits)).await;
        assert_eq!(told, "50331648\n20\n50000 100000\n");
        let now = metrics(&shim).await;
        let (pids, memory) = (now.pids.expect("pids"), now.memory.expect("memory"));
        assert_eq!((pids.current, pids.limit), (1, 20));
        assert_eq!(memory.usage_limit, 48 << 20);
        assert!(memory.usage > 0 && memory.usage < 48 << 20, "{memory:?}");

        let update = r#"{"memory":{"limit":33554432},"pids":{"limit":8}}"#;
        shim.update("c", update).await.unwrap();
        let told = said(&shim, &bundle, bundle.exec_sh("updated", limits)).await;
        assert_eq!(told, "33554432\n8\n50000 100000\n");
        let forks = "for n in 1 2 3 4 5 6 7 8 9; do sleep 100000 >/dev/null 2>&1 & done; echo all";
        let told = said(&shim, &bundle, bundle.exec_sh("forks", forks)).await;
        assert_eq!(told, "", "the ninth process is one too many");
        assert_eq!(metrics(&shim).await.pids.expect("pids").limit, 8);

        shim.update("c", r#"{"pids":{"limit":20}}"#).await.unwrap();
        shim.run(bundle.exec_sh("busy", "while :; do :; done"))
            .await;
        let used = async || metrics(&shim).await.cpu.expect("cpu").usage_usec;
        shim.pause("c").await.unwrap();
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Paused);
        // The kernel calls a process frozen that has still some instructions to go. One that is not
        // would never be throttled here.
        let mut paused = used().await;
        let stands_still = async {
            loop {
                let update = r#"{"cpu":{"quota":100000,"period":100000}}"#;
                shim.update("c", update).await.unwrap();
                let before = std::mem::replace(&mut paused, used().await);
                if before == paused {
                    break;
                }
            }
        };
        wait::soon("it uses no time", stands_still).await;
        shim.resume("c").await.unwrap();
        let uses = async {
            while used().await == paused {
                tokio::task::yield_now().await;
            }
        };
        wait::soon("it uses time again", uses).await;
        shim.kill("c", "busy", 9, false).await.unwrap();
        shim.wait("c", "busy").await.unwrap();

        shim.run(bundle.exec_sh("eats", "exec tail /dev/zero"))
            .await;
        test.events().wait_for("TaskOOM", |e| ooms(e, "c")).await;
        assert_eq!(shim.wait("c", "eats").await.unwrap().exit_status, 137);
        assert_eq!(shim.state("c", "").await.unwrap().status(), State::Running);
        let events = metrics(&shim).await.memory_events.expect("events");
        assert_eq!(events.oom_kill, 1);

        // Another container's init, in the same VM.
        let hungry = test
            .bundle("hungry")
            .annotation(group, "g")
            .memory_limit(16 << 20)
            .sh("exec tail /dev/zero")
            .build();
        hungry.start().answer().await;
        shim.create(hungry.create()).await.unwrap();
        shim.start("hungry", "").await.unwrap();
        assert_eq!(shim.wait("hungry", "").await.unwrap().exit_status, 137);
        test.events().exit("hungry", "hungry").await;
        let about = test.events().about("hungry");
        let place = |of: &dyn Fn(&Event) -> bool| about.iter().position(of).expect("an event");
        let told = place(&|e| ooms(e, "hungry").is_some());
        assert!(told < place(&|e| e.exit_of("hungry", "hungry").is_some()));
        shim.delete("hungry", "").await.unwrap();
        assert_eq!(test.events().count(|e| ooms(e, "c").is_some()), 1);

        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        let stopped = Fifos::new(test.dir().join("late"));
        let late = bundle.exec_sh("late", "true").output(&stopped);
        harness::refused(shim.exec(late).await);
        shim.delete("c", "").await.unwrap();
    });
}
