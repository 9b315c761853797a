// SPDX-License-Identifier: Apache-2.0
//! Many short containers: no event is lost, doubled or out of order.

use harness::containerd::ctr::ends_within;
use harness::containerd::events::of;
use harness::containerd::{Containerd, DEADLINE, report};
use harness::peers;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

for_each_containerd!(many_quick_containers_each_publish_create_start_exit_delete_exactly_once);

fn many_quick_containers_each_publish_create_start_exit_delete_exactly_once(
    containerd: &mut Containerd,
) {
    let many = if containerd.release.name == "2.1" {
        200
    } else {
        50
    };
    let events = containerd.events();
    let containerd = &*containerd;
    let (next, begun) = (AtomicUsize::new(0), Instant::now());
    // Not 1, with which ctr itself fails.
    let code = |n: usize| (n % 3) as i32 * 20;
    thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= many {
                        return;
                    }
                    let script = format!("exit {}", code(n));
                    let words = ["sh", "-c", &script];
                    containerd
                        .run(&["--rm"], &format!("c{n}"), &words)
                        .exits(code(n));
                }
            });
        }
    });
    let took = begun.elapsed();
    // A shim may publish until it ends.
    for shim in containerd.shims() {
        assert!(ends_within(shim, DEADLINE), "a shim still runs: {shim}");
    }
    let all = events.so_far(containerd);
    let mut lost = 0;
    for n in 0..many {
        let (id, code) = (format!("c{n}"), code(n));
        let delete = format!("delete {id} {code}");
        let mut expected = vec![format!("create {id}"), format!("start {id}")];
        expected.extend([format!("exit {id} {code}"), delete.clone()]);
        let seen = of(&all, &id);
        // Known of containerd's Go shims: they exit while their last event is still in the queue.
        if peers::is_go() && !seen.contains(&delete) {
            lost += 1;
            expected.pop();
        }
        assert_eq!(seen, expected);
    }
    report(&format!(
        "{many} containers in {took:.1?}, {lost} delete events lost"
    ));
}
