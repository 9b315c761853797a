// SPDX-License-Identifier: Apache-2.0
//! The shim under Kubernetes: pods and containers through containerd's CRI, as a kubelet asks.
//!
//! Each test runs once per release of containerd and is named after it:
//! `pod::containerd_1_7::a_pod_has_an_address_that_answers_ping`. Not with 1.6: its CRI loses
//! lines of logs, and sends no options to runtimes of other names, whatever the shim.

/// `for_each_containerd!(a, b)` makes of each `fn a(_: &mut Cri)` one test per release.
macro_rules! for_each_containerd {
    (@ $release:ident $name:literal $($test:ident),+) => {
        mod $release {
            $(
                #[test]
                fn $test() {
                    harness::cri::on($name, super::$test);
                }
            )+
        }
    };
    ($($test:ident),+ $(,)?) => {
        for_each_containerd!(@ containerd_1_7 "1.7" $($test),+);
        for_each_containerd!(@ containerd_2_1 "2.1" $($test),+);
    };
}

mod attach;
mod container;
mod exec;
mod logs;
mod options;
mod pause;
mod pod;
mod restart;
mod shim_death;
mod stats;
