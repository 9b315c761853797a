// SPDX-License-Identifier: Apache-2.0
//! A wall clock that somebody sets, forwards and backwards, by days: it is told, never relied on.

use harness::manager::{self, Manager};
use harness::vm::on_its_own_machine;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

const DAY: i64 = 24 * 60 * 60;

/// Moves the clock by some seconds.
fn move_clock(seconds: i64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.expect("after 1970");
    let time = libc::timespec {
        tv_sec: now.as_secs() as i64 + seconds,
        tv_nsec: now.subsec_nanos().into(),
    };
    // SAFETY: reads one struct.
    let set = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// Runs `work` while the clock goes to and fro.
fn with_a_mad_clock<T>(work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mad = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for seconds in [DAY, -2 * DAY, DAY] {
                    move_clock(seconds);
                    std::thread::yield_now();
                }
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        mad.join().expect("the clock");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// X1, X10: an exit finds its process by who reaped what, not by when.
#[test]
fn exits_find_their_processes_while_the_clock_jumps() {
    on_its_own_machine(|| {
        with_a_mad_clock(|| {
            harness::run(async |test| {
                let bundle = test.bundle("c").build();
                let shim = bundle.running().await;
                for (round, name) in (0..10).map(|round| (round, format!("e{round}"))) {
                    let script = format!("exit {round}");
                    shim.run(bundle.exec_sh(&name, &script)).await;
                    let exit = test.events().exit("c", &name).await;
                    assert_eq!(exit.exit_status, round);
                    shim.delete("c", &name).await.unwrap();
                }
            });
        });
    });
}

fn run_and_exit(manager: &Manager, id: &str, code: u32) {
    let script = format!("exit {code}");
    manager.run(&["-d"], id, &["sh", "-c", &script]).ok();
    manager
        .dunnage(&["wait", id])
        .ok()
        .prints(&format!("{code}\n"));
}

/// R1, R3: every exit is kept, once and with its status, and read in the order in which it came,
/// whatever time it bears; by the daemon that saw it and by the next one.
#[test]
fn exits_are_kept_in_their_order_over_clock_jumps() {
    on_its_own_machine(|| {
        manager::on(|manager| {
            let _gate = manager.fifo("d");
            let script = "read x < /mnt/d; exit 4";
            manager.run(&["-d"], "d", &["sh", "-c", script]).ok();
            run_and_exit(manager, "a", 1);
            move_clock(DAY);
            run_and_exit(manager, "b", 2);
            move_clock(-3 * DAY);
            run_and_exit(manager, "c", 3);
            manager.kill();
            // It ends before it began, by the clock, and while nobody looks.
            let d = manager.dir().join("share/d");
            std::fs::write(d, "go\n").expect("the gate");
            move_clock(-DAY);
            manager.restart();
            manager.dunnage(&["wait", "d"]).ok().prints("4\n");
            move_clock(3 * DAY);
            manager.renew();
            for (id, code) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
                let codes: Vec<u32> = manager.exits(id).iter().map(|exit| exit.0).collect();
                assert_eq!(codes, [code], "{id}");
                assert_eq!(manager.status(id), "stopped");
            }
            let filter = "topic==/tasks/exit";
            let all = manager.json(&["events", "--no-follow", "--filter", filter]);
            let order: Vec<_> = all
                .iter()
                .filter_map(|event| event["event"]["container_id"].as_str())
                .collect();
            assert_eq!(order, ["a", "b", "c", "d"]);
            let seq = all[1]["seq"].to_string();
            let args = ["events", "--no-follow", "--filter", filter, "--since", &seq];
            assert_eq!(manager.json(&args), all[1..]);
            // The times are those of the clock: c ended two days before a.
            let until = all[2]["time"].as_str().expect("a time");
            let args = [
                "events",
                "--no-follow",
                "--filter",
                filter,
                "--until",
                until,
            ];
            assert!(manager.json(&args).contains(&all[2]));
            assert!(!manager.json(&args).contains(&all[0]));
        });
    });
}

/// The pause before a restart is measured, not looked up: a container that ends every time is
/// started again after a jump of a day, in either direction.
#[test]
fn restarts_go_on_over_clock_jumps() {
    on_its_own_machine(|| {
        let config = "[restart]\nbackoff_min = \"10ms\"\nbackoff_max = \"100ms\"\n";
        manager::with(config, |manager| {
            let up = manager.fifo("up");
            let script = "echo up > /mnt/up; exit 1";
            let options = ["-d", "--restart", "always"];
            manager.run(&options, "c", &["sh", "-c", script]).ok();
            assert_eq!(up.line(), "up");
            for seconds in [-2 * DAY, 4 * DAY, -2 * DAY] {
                move_clock(seconds);
                assert_eq!(up.line(), "up");
                assert_eq!(up.line(), "up");
            }
            assert!(manager.alive_for(Duration::ZERO));
            manager.dunnage(&["delete", "--force", "c"]).ok();
        });
    });
}
