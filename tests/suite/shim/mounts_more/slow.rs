// SPDX-License-Identifier: Apache-2.0
//! N7: unmounting that takes its time.

use super::{ended, started, text};
use harness::meddler::Meddler;
use harness::{Code, peers, proc, refused, wait};
use protos::task::DeleteRequest;
use protos::task_types::Status as State;
use std::time::{Duration, Instant};

/// How long each umount2 of a slowed shim takes.
const SLOW: Duration = Duration::from_secs(4);

/// N7: a Delete that waits for the kernel holds up nobody, can be given up and done again.
#[test]
fn slow_umount_holds_up_nobody_and_delete_can_be_tried_again() {
    harness::run_unless_vm_differs("private-mounts", async |test| {
        let group = |id: &str| {
            let builder = test.bundle(id);
            builder
                .annotation("io.containerd.runc.v2.group", "g")
                .build()
        };
        let (slow, other) = (group("slow"), group("other"));
        let shim = started(&slow).await;
        other.start().shim().await;
        shim.create(other.create()).await.unwrap();
        shim.start("other", "").await.unwrap();
        ended(&shim, "slow").await;

        let delay = format!("umount2:delay_enter={}", SLOW.as_micros());
        let slowed = Meddler::new(test, shim.pid(), &delay);
        let begin = Instant::now();
        let request = DeleteRequest {
            id: "slow".to_owned(),
            exec_id: String::new(),
        };
        let limit = Duration::from_secs(1);
        let given_up = shim.call_for(&request, limit);
        let meanwhile = async {
            // Until the unmounting has begun.
            let thread = || match proc::stat(shim.pid()) {
                Some(stat) if stat.threads > 1 => Ok(()),
                stat => Err(format!("{stat:?}")),
            };
            if !peers::is_go() {
                wait::until("a thread that unmounts", thread).await;
            }
            let state = shim.state("slow", "").await.unwrap();
            assert_eq!(state.status(), State::Stopped);
            let state = shim.state("other", "").await.unwrap();
            assert_eq!(state.status(), State::Running);
            shim.stats("other").await.unwrap();
            assert!(!shim.pids("other").await.unwrap().processes.is_empty());
            // Nothing that runs runc: strace slows down its umount2 too.
            shim.exec(other.exec("e", &["true"])).await.unwrap();
        };
        let (given_up, ()) = tokio::join!(given_up, meanwhile);
        let done = begin.elapsed();
        assert!(done < SLOW, "others had to wait: {done:?}");
        assert_eq!(refused(given_up).code, Code::DeadlineExceeded);
        assert_eq!(slow.mounts(), [text(&slow.file("rootfs"))], "still at it");

        // The first Delete goes on; the second one waits for it and finds its work done.
        let second = shim.delete("slow", "").await;
        let elapsed = begin.elapsed();
        assert!(elapsed >= SLOW, "not unmounted after {elapsed:?}");
        if let Err(error) = second {
            assert_eq!(refused::<()>(Err(error)).code, Code::NotFound);
        }
        assert_eq!(refused(shim.state("slow", "").await).code, Code::NotFound);
        assert_eq!(slow.mounts(), [] as [String; 0]);
        test.events().delete("slow").await;
        drop(slowed);
        ended(&shim, "other").await;
        shim.delete("other", "").await.unwrap();
        if !peers::is_go() {
            wait::until("the thread that unmounted has ended", || {
                match shim.footprint().threads {
                    1 => Ok(()),
                    more => Err(format!("{more} threads")),
                }
            })
            .await;
        }
        shim.shutdown("").await.unwrap();
        wait::ended(shim.pid()).await;
    });
}
