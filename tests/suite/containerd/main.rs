// SPDX-License-Identifier: Apache-2.0
//! The shim under real containerds, seen as an operator sees it: through `ctr`, events and /proc
//! (B21: each of them understands what `start` answers; B90: nothing else of theirs stands in the way).
//!
//! Each test runs once per release of containerd and is named after it:
//! `exec::containerd_1_7::an_exec_returns_its_exit_code`.

/// `for_each_containerd!(a, b)` makes of each `fn a(_: &mut Containerd)` one test per release.
macro_rules! for_each_containerd {
    (@ $release:ident $name:literal $($test:ident),+) => {
        mod $release {
            $(
                #[test]
                fn $test() {
                    harness::containerd::on($name, super::$test);
                }
            )+
        }
    };
    ($($test:ident),+ $(,)?) => {
        for_each_containerd!(@ containerd_1_6 "1.6" $($test),+);
        for_each_containerd!(@ containerd_1_7 "1.7" $($test),+);
        for_each_containerd!(@ containerd_2_1 "2.1" $($test),+);
    };
}

mod attach;
mod checkpoint;
mod events;
mod exec;
mod group;
mod interop;
mod lifecycle;
mod live_upgrade;
mod oom;
mod restart;
mod run;
mod shim_death;
mod storm;
mod trace;
mod tty;
mod upgrade;
