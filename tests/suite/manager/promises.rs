// SPDX-License-Identifier: Apache-2.0
//! What the daemon costs: threads and memory, which must not grow.

use harness::containerd::report;
use harness::manager::{self, Manager};
use harness::proc;

/// Its private memory in kB: what its files on disk share is not its own.
fn private(manager: &Manager) -> u64 {
    proc::status(manager.pid(), "RssAnon").expect("RssAnon")
}

/// What it has done beside its loop, it has done.
fn one_thread(manager: &Manager) -> Option<()> {
    (proc::status(manager.pid(), "Threads") == Some(1)).then_some(())
}

fn exec_cycles(manager: &Manager, count: usize) {
    for _ in 0..count {
        manager.dunnage(&["exec", "c", "true"]).ok();
    }
}

/// 1,000 of them in `make soak`.
#[test]
fn execs_leave_no_memory_behind() {
    manager::on(|manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        // What is remembered of deleted execs is bounded, and grows up to its bound.
        exec_cycles(manager, 50);
        let before = private(manager);
        exec_cycles(manager, 100);
        let grown = private(manager).saturating_sub(before);
        report(&format!("100 execs: {before} kB, and {grown} kB more"));
        assert!(grown <= 160, "{grown} kB for 100 execs");
        manager.until("one thread", one_thread);
    });
}

/// The whole of its memory is measured by the bench, beside containerd's.
#[test]
fn a_further_task_costs_little() {
    const TASKS: u64 = 20;
    manager::on(|manager| {
        let run = |id: String| manager.run(&["-d"], &id, &["sleep", "1000"]).ok();
        for n in 0..5 {
            run(format!("first{n}"));
        }
        let before = private(manager);
        for n in 0..TASKS {
            run(format!("c{n}"));
        }
        let each = private(manager).saturating_sub(before) / TASKS;
        report(&format!("{before} kB, and {each} kB for each further task"));
        assert!(each <= 25, "{each} kB each");
        manager.until("one thread", one_thread);
    });
}

/// The process that writes a container's log.
fn logger_of(manager: &Manager, id: &str) -> i32 {
    let is_logger = |&pid: &i32| proc::words(pid, "cmdline").iter().any(|it| it == "log");
    let children = proc::children(manager.shim_of(id));
    children.into_iter().find(is_logger).expect("a logger")
}

/// The shim and the logger of each of ten, with their parts of what they share: conmon, which has a
/// container's log in itself, takes 610 KiB.
#[test]
fn a_detached_container_costs_less_than_under_conmon() {
    manager::on(|manager| {
        let ids: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
        for id in &ids {
            manager.run(&["-d"], id, &["sleep", "1000"]).ok();
        }
        let cost = |id: &str| proc::pss(manager.shim_of(id)) + proc::pss(logger_of(manager, id));
        let most = manager.until("ten small ones", |_| {
            let most = ids.iter().map(|id| cost(id)).max().expect("ten");
            (most < 610).then_some(most)
        });
        report(&format!(
            "a shim and its logger, of ten: {most} KiB at most"
        ));
    });
}

/// What it has, and what of it beside the program, which it shares with the daemon and all other loggers.
#[test]
fn a_logger_costs_little() {
    manager::on(|manager| {
        let _go = manager.fifo("go");
        let script = "seq 1 1000; read line </mnt/go; echo $line; exec sleep 1000";
        let words = ["sh", "-c", script];
        manager.run(&["-d"], "c", &words).ok();
        manager.until("all in the log", |it| {
            let logs = it.dunnage(&["logs", "c"]).ok().stdout;
            logs.ends_with("\n1000\n").then_some(())
        });
        let logger = logger_of(manager, "c");
        // Once the container is quiet.
        let all = manager.until("a small logger", |_| {
            let all = proc::pss(logger);
            (all <= 300).then_some(all)
        });
        let own = proc::private_dirty(logger);
        report(&format!("a logger: {all} KiB, {own} of them its own"));
        assert!(own <= 120, "{own} KiB");
        let go = "echo more >/mnt/go";
        manager.run(&["--rm"], "d", &["sh", "-c", go]).ok();
        manager.until("it goes on", |it| {
            let logs = it.dunnage(&["logs", "c"]).ok().stdout;
            logs.ends_with("\nmore\n").then_some(())
        });
    });
}
