//! A hundred VMs one after another: none hangs, none leaves anything.

use harness::stdio::{Fifos, Stdio};
use harness::{peers, proc};
use std::time::{Duration, Instant};

const BOOTS: usize = 100;
/// Six times what they take on an idle machine without KVM.
const LIMIT: Duration = Duration::from_secs(1200);

#[test]
fn a_hundred_boots_in_a_row_all_end_well() {
    harness::run_alone_within(LIMIT, async |test| {
        let (mut first, mut whole) = (Vec::new(), Vec::new());
        let mut most = 0;
        for n in 0..BOOTS {
            let id = format!("c{n}");
            let bundle = test.bundle(&id).sh("echo up; read x; exit 7").build();
            let fifos = Fifos::new(test.dir().join(format!("io-{id}")));
            let (mut out, _err) = fifos.readers();
            let began = Instant::now();
            let shim = bundle.start().binary(peers::vm_shim()).shim().await;
            shim.create(bundle.create().fifos(&fifos)).await.unwrap();
            shim.start(&id, "").await.unwrap();
            assert_eq!(out.line().await, "up", "boot {n}");
            first.push(began.elapsed());
            most = most.max(proc::private_dirty(shim.pid()));
            fifos.stdin.writer().await.write("go\n").await;
            assert_eq!(shim.wait(&id, "").await.unwrap().exit_status, 7, "boot {n}");
            shim.delete(&id, "").await.unwrap();
            assert!(!test.vm_dir(&id).exists());
            assert_eq!(proc::children(shim.pid()), Vec::<i32>::new());
            shim.stopped().await;
            whole.push(began.elapsed());
        }
        first.sort();
        whole.sort();
        let last = BOOTS - 1;
        println!(
            "{BOOTS} boots in a row: first output after {:.2?} (median), {:.2?} (p99), \
             {:.2?} (most); to the end of the shim {:.2?} (median); \
             {most} KiB private memory of a shim at most",
            first[last / 2],
            first[last * 99 / 100],
            first[last],
            whole[last / 2],
        );
    });
}
