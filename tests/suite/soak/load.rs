// SPDX-License-Identifier: Apache-2.0
//! Many containers, many execs, much output: nothing is lost, and nothing stays (T60, X2, I5, I9).

use harness::events::Kind;
use harness::shim::Footprint;
use harness::stdio::Fifo;
use harness::{Bundle, Shim, Test, proc, wait};
use protos::task::{CreateTaskRequest, ExecProcessRequest};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

/// How many requests are on their way at once where nothing else is asked for.
const AT_ONCE: usize = 16;
/// No figure here takes longer, on a loaded machine of two cores.
const LONG: Duration = Duration::from_secs(150);

/// Does `work` for each of `0..count`, some at once; the results in order.
async fn each<T: 'static, F: Future<Output = T> + 'static>(
    count: usize,
    at_once: usize,
    work: impl Fn(usize) -> F,
) -> Vec<T> {
    let turns = Rc::new(Semaphore::new(at_once));
    let start = |n| {
        let (turns, work) = (Rc::clone(&turns), work(n));
        tokio::task::spawn_local(async move {
            let _turn = turns.acquire().await;
            work.await
        })
    };
    let tasks: Vec<_> = (0..count).map(start).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(wait::within(LONG, "one of many", task).await.unwrap());
    }
    results
}

async fn run(shim: &Shim, bundle: &Bundle) {
    shim.create(bundle.create()).await.unwrap();
    shim.start(&bundle.id, "").await.unwrap();
}

async fn end(shim: &Shim, id: &str) {
    shim.kill(id, "", libc::SIGKILL, false).await.unwrap();
    assert_eq!(shim.wait(id, "").await.unwrap().exit_status, 137);
    shim.delete(id, "").await.unwrap();
}

/// Private memory of a process, in KiB.
fn private(pid: i32) -> u64 {
    proc::status(pid, "RssAnon").unwrap_or_default()
}

/// One TaskExit for each process, and no more.
async fn check_exits(test: &Test, count: usize) {
    let is_exit = |e: &harness::events::Event| matches!(e.kind, Kind::Exit(_));
    test.events().wait_count("TaskExit", count, is_exit).await;
    assert_eq!(test.events().count(is_exit), count, "TaskExit");
}

#[test]
fn two_hundred_containers_in_two_hundred_shims() {
    const COUNT: usize = 200;
    harness::run_alone(async |test| {
        let began = Instant::now();
        let bundles: Vec<Bundle> = (0..COUNT)
            .map(|n| test.bundle(&format!("c{n}")).build())
            .collect();
        let bundles = Rc::new(bundles);
        let started = Rc::clone(&bundles);
        let shims = each(COUNT, AT_ONCE, |n| {
            let bundle = started[n].clone();
            async move {
                let shim = bundle.start().shim().await;
                run(&shim, &bundle).await;
                shim
            }
        });
        let shims = Rc::new(shims.await);
        let up = began.elapsed();
        let memory: u64 = shims.iter().map(|shim| private(shim.pid())).sum();
        let threads: usize = shims.iter().map(|shim| shim.footprint().threads).sum();
        assert_eq!(threads, COUNT, "one thread each");
        let began = Instant::now();
        let all = Rc::clone(&shims);
        each(COUNT, AT_ONCE, |n| {
            let shim = all[n].clone();
            async move {
                end(&shim, &format!("c{n}")).await;
                shim.stopped().await;
            }
        })
        .await;
        println!(
            "{COUNT} containers in {COUNT} shims: up in {up:.1?}, down in {:.1?}; \
             {} KiB private memory a shim, 1 thread",
            began.elapsed(),
            memory / COUNT as u64
        );
        test.events()
            .wait_count("TaskDelete", COUNT, |e| matches!(e.kind, Kind::Delete(_)))
            .await;
        check_exits(test, COUNT).await;
    });
}

/// A shim of the group `g`, and the bundles of its containers.
async fn group(test: &Test, count: usize) -> (Shim, Rc<Vec<Bundle>>) {
    let bundle = |n| {
        let builder = test.bundle(&format!("c{n}"));
        builder
            .annotation("io.containerd.runc.v2.group", "g")
            .build()
    };
    let bundles: Vec<Bundle> = (0..count).map(bundle).collect();
    (bundles[0].start().shim().await, Rc::new(bundles))
}

#[test]
fn fifty_containers_in_one_shim() {
    const COUNT: usize = 50;
    harness::run_alone(async |test| {
        let (shim, bundles) = group(test, COUNT).await;
        let empty = shim.footprint();
        let mut rounds = Vec::new();
        for _ in 0..2 {
            let began = Instant::now();
            each(COUNT, COUNT, |n| {
                let (shim, bundle) = (shim.clone(), bundles[n].clone());
                async move { run(&shim, &bundle).await }
            })
            .await;
            let (up, full) = (began.elapsed(), private(shim.pid()));
            let began = Instant::now();
            each(COUNT, COUNT, |n| {
                let shim = shim.clone();
                async move { end(&shim, &format!("c{n}")).await }
            })
            .await;
            rounds.push((up, began.elapsed(), full, private(shim.pid())));
        }
        wait::until("the shim is as it was", || match shim.footprint() {
            now if now == empty => Ok(()),
            now => Err(format!("{now:?}")),
        })
        .await;
        for (up, down, full, after) in &rounds {
            println!(
                "{COUNT} containers in one shim: up in {up:.1?}, down in {down:.1?}; \
                 {full} KiB private memory, {after} KiB after"
            );
        }
        check_exits(test, 2 * COUNT).await;
        assert!(rounds[1].3 <= rounds[0].3 + 256, "memory grows: {rounds:?}");
    });
}

#[test]
fn hundred_execs_at_once() {
    const COUNT: usize = 100;
    const ROUNDS: usize = 8;
    harness::run_alone(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        run(&shim, &bundle).await;
        shim.one_thread().await;
        let before = shim.footprint();
        let mut figures = Vec::new();
        for round in 0..ROUNDS {
            let began = Instant::now();
            let stdout = Rc::new(test.share());
            let codes = each(COUNT, COUNT, |n| {
                let (shim, bundle, dir) = (shim.clone(), bundle.clone(), Rc::clone(&stdout));
                async move {
                    let id = format!("e{round}-{n}");
                    let fifo = Fifo::new(dir.join(&id));
                    let mut reader = fifo.reader();
                    let request = ExecProcessRequest {
                        stdout: fifo.name(),
                        ..bundle.exec_sh(&id, &format!("echo {id}; exit {n}"))
                    };
                    shim.exec(request).await.unwrap();
                    shim.start("c", &id).await.unwrap();
                    let status = shim.wait("c", &id).await.unwrap().exit_status;
                    shim.delete("c", &id).await.unwrap();
                    assert_eq!(reader.text().await, format!("{id}\n"));
                    status
                }
            })
            .await;
            assert!(codes.iter().enumerate().all(|(n, code)| *code == n as u32));
            let took = began.elapsed();
            // Until they are taken, events are memory, too.
            check_exits(test, (round + 1) * COUNT).await;
            figures.push((took, private(shim.pid())));
        }
        let same = |now: &Footprint| *now == before;
        wait::until("the shim is as it was", || {
            Some(shim.footprint())
                .filter(same)
                .map(drop)
                .ok_or_else(|| format!("{:?}, before {before:?}", shim.footprint()))
        })
        .await;
        for (took, memory) in &figures {
            println!("{COUNT} execs at once: {took:.1?}, {memory} KiB private memory after");
        }
        // Later rounds find what the first ones needed.
        let (early, late) = (figures[ROUNDS / 2].1, figures[ROUNDS - 1].1);
        assert!(late <= early + 256, "memory grows: {figures:?}");
    });
}

/// A reader that takes 4 KiB at a time, and now and then stops until the FIFO is full.
#[test]
fn one_gibibyte_through_a_slow_reader() {
    const SIZE: u64 = 1 << 30;
    harness::run_alone(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        run(&shim, &bundle).await;
        let fifo = Fifo::new(test.share().join("out"));
        let open = tokio::net::unix::pipe::OpenOptions::new();
        let mut reader = open.open_receiver(fifo.path()).unwrap();
        let request = ExecProcessRequest {
            stdout: fifo.name(),
            ..bundle.exec_sh("e", &format!("yes 0123456 | head -c {SIZE}"))
        };
        shim.exec(request).await.unwrap();
        shim.start("c", "e").await.unwrap();
        let began = Instant::now();
        let before = private(shim.pid());
        let (mut bytes, mut stops, mut most) = (0u64, 0, before);
        let mut buffer = [0u8; 4096];
        let pattern = b"0123456\n".repeat(buffer.len() / 8 + 1);
        let read = async {
            loop {
                let n = reader.read(&mut buffer).await.unwrap();
                if n == 0 {
                    break;
                }
                let expected = &pattern[(bytes % 8) as usize..][..n];
                assert!(buffer[..n] == *expected, "after {bytes} bytes");
                let next = bytes + n as u64;
                if next >> 25 != bytes >> 25 && next < SIZE {
                    wait::until("the FIFO is full", || match unread(&reader) {
                        full if full > 60 << 10 => Ok(()),
                        part => Err(format!("{part} bytes in it")),
                    })
                    .await;
                    stops += 1;
                    most = most.max(private(shim.pid()));
                }
                bytes = next;
            }
        };
        wait::within(LONG, "a gibibyte", read).await;
        assert_eq!(bytes, SIZE);
        let took = began.elapsed();
        shim.wait("c", "e").await.unwrap();
        shim.delete("c", "e").await.unwrap();
        println!(
            "1 GiB through stdout: {took:.1?}, {:.0} MiB/s, {stops} stops; \
             private memory {before} KiB before, {most} KiB at most",
            1024.0 / took.as_secs_f32()
        );
        assert!(most <= before + 512, "the shim keeps output in memory");
    });
}

/// Bytes in the FIFO that nobody has read.
fn unread(reader: &tokio::net::unix::pipe::Receiver) -> usize {
    use std::os::fd::AsRawFd;
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and the fd is open while it is borrowed.
    let done = unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &mut count) };
    assert_eq!(done, 0, "FIONREAD");
    count as usize
}

/// A client that comes and goes: the next one goes on at the very byte.
#[test]
fn twenty_rounds_of_attach_and_detach() {
    const ROUNDS: usize = 20;
    const LINES: usize = 500;
    harness::run_alone(async |test| {
        let script = "i=0; while :; do echo $i; i=$((i+1)); done";
        let bundle = test.bundle("c").sh(script).build();
        let shim = bundle.start().shim().await;
        let fifo = Fifo::new(test.share().join("out"));
        let first = fifo.reader();
        let request = CreateTaskRequest {
            stdout: fifo.name(),
            ..bundle.create()
        };
        shim.create(request).await.unwrap();
        shim.start("c", "").await.unwrap();
        drop(first);
        shim.one_thread().await;
        let began = Instant::now();
        let held = shim.footprint();
        let mut next = 0;
        for _ in 0..ROUNDS {
            let mut reader = fifo.reader();
            for _ in 0..LINES {
                assert_eq!(reader.line().await, next.to_string());
                next += 1;
            }
        }
        assert_eq!(shim.footprint(), held);
        println!(
            "{ROUNDS} rounds of attach and detach: {next} lines, none lost, {:.1?}",
            began.elapsed()
        );
        // Somebody must take the rest.
        let mut last = fifo.reader();
        shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
        last.to_end().await;
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
    });
}
