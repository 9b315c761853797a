//! The daemon is killed at a system call of its choice while a container is run: no acknowledged
//! start loses its exit, no exit is made up, no shim is left.
//!
//! A few points always; all of them with `SWEEP=full` (`make soak`).

use harness::manager;

/// Calls that change something, or tell somebody.
const SYSCALLS: &[&str] = &[
    "write", "rename", "mkdir", "openat", "sendto", "writev", "clone", "unlink",
];
const FULL: u32 = 12;
const FEW: u32 = 1;

#[test]
fn no_point_of_death_loses_an_exit_or_makes_one_up() {
    let full = std::env::var("SWEEP").is_ok_and(|sweep| sweep == "full");
    let points = if full { FULL } else { FEW };
    let (mut reached, mut acknowledged) = (0, 0);
    for syscall in SYSCALLS {
        for point in 1..=points {
            // Beyond the start, which makes some of each call too.
            let when = 3 + (point - 1) * 4;
            manager::on(|manager| {
                manager.kill();
                manager.up_until(syscall, when);
                let run = manager.run(&["-d"], "c", &["sh", "-c", "exit 7"]);
                let started = run.code == 0;
                manager.kill();
                manager.restart();
                reached += 1;
                if started {
                    acknowledged += 1;
                    manager.until("its exit", |it| (!it.exits("c").is_empty()).then_some(()));
                }
                let exits = manager.exits("c");
                let place = format!("{syscall} {when}: {exits:?}");
                assert!(exits.len() <= 1, "{place}");
                assert!(exits.iter().all(|(status, _)| *status == 7), "{place}");
            });
        }
    }
    harness::containerd::report(&format!(
        "{reached} points, {acknowledged} acknowledged starts"
    ));
}
