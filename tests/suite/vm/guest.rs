//! What a container finds in its guest, beside its files: time.

use crate::said;

/// Its kernel has timers finer than its tick, and no tick while there is nothing to do.
#[test]
fn timers_are_fine_without_kvm_too() {
    crate::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let script = "grep -m 1 -o 'hres_active .*' /proc/timer_list; \
                      grep -m 1 -o 'nohz_mode .*' /proc/timer_list";
        let told = said(&shim, &bundle, bundle.exec_sh("timers", script)).await;
        let words: Vec<&str> = told.split_whitespace().collect();
        let ["hres_active", ":", "1", "nohz_mode", ":", "2"] = words[..] else {
            panic!("{told}");
        };
        shim.stop().await;
    });
}
