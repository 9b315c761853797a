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
