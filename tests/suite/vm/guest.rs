// SPDX-License-Identifier: Apache-2.0
//! What a container finds in its guest, beside its files: time, limits, and an end.

use crate::said;
use harness::stdio::{Fifos, Stdio};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use serde_json::json;

/// Its kernel has timers finer than its tick, and no tick while there is nothing to do.
#[test]
fn timers_are_fine_without_kvm_too() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let script = "grep -m 1 -o 'hres_active .*' /proc/timer_list; \
                      grep -m 1 -oE 'nohz(_mode)? .*' /proc/timer_list";
        let told = said(&shim, &bundle, bundle.exec_sh("timers", script)).await;
        let words: Vec<&str> = told.split_whitespace().collect();
        // Linux 6.10 and later say it in another way (kernel/time/timer_list.c).
        let no_tick = [["nohz_mode", ":", "2"], ["nohz", ":", "1"]];
        assert!(
            words[..3] == ["hres_active", ":", "1"] && no_tick.iter().any(|how| words[3..] == *how),
            "{told}"
        );
        shim.stop().await;
    });
}

/// A container that says nothing of its limits has those that its shim was started with, as on the host.
#[test]
fn limits_are_those_of_a_container_on_the_host() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let most = |files: u64| files.min(1 << 20).to_string();
        let (locked, most_locked) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        let kib = |bytes: u64| match bytes {
            RLIM_INFINITY => "unlimited".to_owned(),
            bytes => (bytes >> 10).to_string(),
        };
        let expected = [most(soft), most(hard), kib(locked), kib(most_locked)];
        let script = "ulimit -Sn; ulimit -Hn; ulimit -Sl; ulimit -Hl";
        let told = said(&shim, &bundle, bundle.exec_sh("limits", script)).await;
        assert_eq!(told.lines().collect::<Vec<_>>(), expected);
        shim.stop().await;
    });
}

/// Why a guest's kernel failed is in the log, though it says much more after that.
#[test]
fn the_first_words_of_a_panic_are_told() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let mut crash =
            harness::bundle::process(test, &["sh", "-c", "echo c >/proc/sysrq-trigger"]);
        for set in ["bounding", "effective", "permitted"] {
            crash["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
        }
        shim.run(bundle.exec_spec("crash", &crash)).await;
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        shim.delete("c", "").await.unwrap();
        shim.stopped().await;
        let log = shim.log();
        let why = "Kernel panic - not syncing: sysrq triggered crash";
        assert_eq!(log.matches(why).count(), 1, "{log}");
    });
}

/// Who may make network devices gets the drivers of those that containers make.
#[test]
fn bridges_and_pairs_are_there_for_who_may_make_them() {
    crate::run(async |test| {
        let may = json!(["CAP_NET_ADMIN"]);
        let capabilities = json!({"bounding": may, "effective": may, "permitted": may});
        let script = "exec 2>&1; brctl addbr one && ip link add two type bridge && ip link add three type dummy && \
                      ip link add four type veth && ip link add link four name five type macvlan && \
                      tunctl -t seven >/dev/null && \
                      ip -o link | cut -d: -f2 | cut -d@ -f1 | tr -d '\\n'; \
                      ip link add six type nonesuch 2>&1 | grep -c .";
        let tun = json!({"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666});
        let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"});
        let bundle = test.bundle("c").set("/process/capabilities", capabilities);
        let bundle = bundle.set("/linux/devices", json!([tun]));
        let bundle = bundle.set("/linux/resources/devices", json!([rule]));
        let sysfs = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
        let bundle = bundle.mount(sysfs).sh(script).build();
        let fifos = Fifos::new(test.dir().join("io"));
        let (mut out, _err) = fifos.readers();
        let shim = bundle.start().shim().await;
        shim.create(bundle.create().output(&fifos)).await.unwrap();
        shim.start("c", "").await.unwrap();
        let told = out.text().await;
        for name in ["one", "two", "three", "four", "five", "seven"] {
            assert!(told.contains(&format!(" {name}")), "{told}");
        }
        assert!(told.ends_with("1\n"), "{told}");
        shim.stop().await;
    });
}
