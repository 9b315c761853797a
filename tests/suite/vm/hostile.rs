// SPDX-License-Identifier: Apache-2.0
//! The guest is the attacker: its kernel and agent are `tests/hostile`, one mode an attack. Whatever
//! it does, calls end, SIGKILL and Delete win, each exit is told once, and nothing is left.
//!
//! The hostile guest is as honest as any until exec `go` is started, or a call comes that its mode has
//! an answer of its own to.

use crate::{attacker, child};
use harness::events::Kind;
use harness::stdio::{Fifos, Reader, Stdio};
use harness::{Bundle, Code, Shim, Test, proc, refused, wait};
use protos::task;
use protos::ttrpc::CallError;
use std::time::{Duration, Instant};

/// How long the guest may owe what it must do.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long what the host has promised may take: the guest's time, the end of a VM, and a slow machine.
const PROMISED: Duration = Duration::from_secs(30);
/// KiB that a shim may ever have, its own program included.
const MEMORY: u64 = 16 << 10;
/// Bytes that it may log of one VM.
const LOG: usize = 256 << 10;

/// A shim whose VM will be the attacker's.
async fn shim(test: &Test, mode: &str, settings: &str) -> (Bundle, Shim, Fifos) {
    let patience = PATIENCE.as_secs();
    let settings = format!("kill_timeout = {patience}\n{settings}");
    let config = attacker::configuration(&test.dir().join("hostile"), mode, &settings);
    let bundle = test.bundle("c").build();
    let start = bundle
        .start()
        .env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
    let fifos = Fifos::new(test.dir().join("io"));
    (bundle, start.shim().await, fifos)
}

/// A container in the attacker's VM, with exec `go`, and somebody who waits for it.
struct Attacked<'a> {
    test: &'a Test,
    bundle: Bundle,
    shim: Shim,
    qemu: i32,
    waits: tokio::task::JoinHandle<Result<task::WaitResponse, CallError>>,
}

impl<'a> Attacked<'a> {
    async fn new(test: &'a Test, mode: &str, settings: &str) -> Self {
        let (bundle, shim, fifos) =
            shim(test, mode, &format!("start_timeout = 70\n{settings}")).await;
        for mut out in <[Reader; 2]>::from(fifos.readers()) {
            tokio::task::spawn_local(async move { out.sum().await });
        }
        shim.create(bundle.create().fifos(&fifos))
            .await
            .expect("Create");
        let qemu = child(&shim, "-no-user-config");
        shim.start("c", "").await.expect("Start");
        let waiting = shim.clone();
        let waits = tokio::task::spawn_local(async move { waiting.wait("c", "").await });
        shim.exec(bundle.exec("go", &["x"])).await.expect("Exec");
        // The VM may end before the answer comes.
        let _ = shim.start("c", "go").await;
        Self {
            test,
            bundle,
            shim,
            qemu,
            waits,
        }
    }

    /// A call that is the guest's to answer, and waits a second, ends within its time, give or take a
    /// slow machine.
    async fn asked(&self) -> Result<(), CallError> {
        let request = task::UpdateTaskRequest {
            id: "c".into(),
            resources: Some(protos::Any {
                type_url: String::new(),
                value: b"{}".to_vec(),
            }),
            ..Default::default()
        };
        let updated = self.shim.call_for(&request, Duration::from_secs(1));
        wait::within(PROMISED, "answer of Update", updated).await
    }

    /// `ctr task kill -s KILL`.
    async fn killed(&self) {
        let killed = self.shim.kill("c", "", libc::SIGKILL, false);
        match wait::within(PROMISED, "answer of Kill", killed).await {
            Ok(()) => {}
            Err(e) => assert_eq!(refused::<()>(Err(e)).code, Code::NotFound),
        }
    }

    /// Everybody was told once how it ended, the container can be deleted, and nothing is left.
    async fn ends(self, go: u32, why: &str) {
        let events = self.test.events();
        let exits = async { (events.exit("c", "go").await, events.exit("c", "c").await) };
        let exits = wait::within(PROMISED * 2, "exits", exits).await;
        assert_eq!((exits.0.exit_status, exits.1.exit_status), (go, 137));
        let waited = wait::within(PROMISED, "answer of Wait", self.waits).await;
        assert_eq!(waited.unwrap().unwrap().exit_status, 137);
        let before = Instant::now();
        let deleted = wait::within(PROMISED, "answer of Delete", self.shim.delete("c", "")).await;
        assert_eq!(
            deleted.unwrap().exit_status,
            137,
            "after {:?}",
            before.elapsed()
        );
        wait::ended(self.qemu).await;
        assert!(!self.test.vm_dir("c").exists());
        let told: Vec<String> = events
            .about("c")
            .into_iter()
            .filter_map(|event| match event.kind {
                Kind::Exit(exit) => Some(exit.id),
                _ => None,
            })
            .collect();
        assert_eq!(told, ["go", "c"], "each once, init's last");
        let most = proc::status(self.shim.pid(), "VmHWM").expect("its memory");
        assert!(most < MEMORY, "the shim had {most} KiB");
        let log = self.bundle.log.text();
        assert!(log.contains(why), "no {why:?} in:\n{log}");
        assert!(!log.contains(['\x1b', '\u{202e}']), "{log}");
        assert!(log.len() < LOG, "a log of {} bytes", log.len());
        self.shim.stopped().await;
    }
}

/// A guest that breaks its word is killed at once, and the log says how it broke it. `go`: how that
/// ended.
fn breaks_its_word(mode: &str, go: u32, how: &str) {
    crate::run(async |test| {
        let attacked = Attacked::new(test, mode, "").await;
        let _ = attacked.asked().await;
        let pids = attacked.shim.pids("c");
        let _ = wait::within(PROMISED, "answer of Pids", pids).await;
        let why = format!("VM of c: the guest broke its word: {how}");
        attacked.ends(go, &why).await;
    });
}

/// A guest that SIGKILL must end, and may not on its own.
fn can_be_killed(mode: &str, settings: &str, why: &str) {
    crate::run(async |test| {
        let attacked = Attacked::new(test, mode, settings).await;
        if let Err(CallError::Status(status)) = attacked.asked().await {
            assert!(
                status.message.len() < 16 << 10,
                "{} bytes",
                status.message.len()
            );
            assert!(!status.message.contains(['\x1b', '\u{202e}']));
            assert!(!status.message.contains("the VM is gone"), "it runs");
        }
        assert!(proc::alive(attacked.qemu));
        // Calls that are not the guest's to answer have their turn, whatever it floods the shim with.
        let connected = attacked.shim.connect_call("c");
        let connected = wait::within(PROMISED / 4, "answer of Connect", connected).await;
        connected.expect("Connect");
        attacked.killed().await;
        attacked.ends(137, why).await;
    });
}

/// A guest that does not come up, or not in time: the Create fails, and the shim is not left.
fn does_not_come_up(mode: &str, settings: &str, patience: Option<Duration>, why: &str) {
    crate::run(async |test| {
        let (bundle, shim, _) = shim(test, mode, settings).await;
        let create = bundle.create();
        let status = match patience {
            Some(patience) => {
                let created = shim.call_for(&create, patience);
                refused(wait::within(PROMISED, "answer of Create", created).await)
            }
            None => refused(shim.create(create).await),
        };
        assert!(status.message.contains(why), "{status}");
        assert!(!status.message.contains('\x1b'), "{status}");
        // Shutdown does not wait for what is still being undone, nor forget it: no shim stays.
        shim.stopped().await;
        assert!(!test.vm_dir("c").exists());
        assert_eq!(test.events().exits("c", "c"), 0);
    });
}

macro_rules! attacks {
    ($($name:ident: $kind:ident($($of:expr),*);)*) => {
        $(#[test] fn $name() { $kind($($of),*); })*
    };
}

const NONE: &str = "";
const SHORT: &str = "start_timeout = 8";
const LONG: &str = "start_timeout = 120";
const EARLY: Option<Duration> = Some(Duration::from_secs(6));

attacks! {
    says_nothing: does_not_come_up("silent", SHORT, None, "not ready within 8 s");
    says_nothing_to_a_caller_that_leaves: does_not_come_up("silent", LONG, EARLY, "deadline exceeded");
    reboots_before_its_hello: does_not_come_up("reboot", LONG, None, "QEMU ended");
    says_garbage_for_hello: does_not_come_up("hello-garbage", LONG, None, "its agent is not heard");
    speaks_another_version: does_not_come_up("hello-version", LONG, None, "speaks version 99");
    never_answers_configure: does_not_come_up("no-configure", LONG, EARLY, "deadline exceeded");
    never_tells_the_time: does_not_come_up("no-time", LONG, EARLY, "deadline exceeded");
    never_answers_create: does_not_come_up("no-create", LONG, EARLY, "deadline exceeded");

    says_hello_twice: breaks_its_word("hello-twice", 137, "a second hello");
    sends_a_frame_too_long: breaks_its_word("huge-frame", 137, "frame of kind 2 with 16777215 bytes");
    sends_an_unknown_frame: breaks_its_word("unknown-frame", 137, "frame of kind 77");
    sends_on_a_stream_that_never_was: breaks_its_word("never-opened", 137, "stream 9999: was never");
    opens_streams: breaks_its_word("open", 137, "stream 10000: opened by the side that may not");
    sends_beyond_its_credit: breaks_its_word("window", 137, "stream 3: more data than it has credit");
    closes_its_ttrpc: breaks_its_word("close-ttrpc", 137, "its ttrpc: the connection has ended");
    closes_its_notices: breaks_its_word("close-notices", 137, "its notices: ");
    sends_a_notice_too_long: breaks_its_word("notice-long", 137, "its notices: a notice that is too");
    sends_a_notice_of_garbage: breaks_its_word("notice-garbage", 137, "its notices: ");
    answers_at_length: breaks_its_word("big-answer", 137, "its ttrpc: an answer of 5242880 bytes");
    answers_what_nobody_asked: breaks_its_word("unmade-answer", 137, "its ttrpc: an answer on stream");
    answers_garbage: breaks_its_word("answer-garbage", 137, "its ttrpc: an answer that is none");
    answers_an_update_of_garbage: breaks_its_word("update-garbage", 137, "answer of Update: ");
    knows_no_container: breaks_its_word("not-found", 137, "Update of c, which is there: not found");
    floods_with_events: breaks_its_word("events", 137, "c: too many events");
    tells_what_is_no_event: breaks_its_word("event-garbage", 137, "an event that is none");
    tells_of_an_unknown_container: breaks_its_word("unknown-container", 137, "an event of ");
    tells_of_an_unknown_process: breaks_its_word("unknown-process", 137, "c: an event of ");
    starts_twice: breaks_its_word("second-start", 137, "a start of ");
    exits_twice: breaks_its_word("second-exit", 3, "c: a second exit of ");
    deletes_unasked: breaks_its_word("unasked-delete", 137, "c: a deletion that nobody asked for");
    leaves_an_event_out: breaks_its_word("number", 137, "event ");
    goes_on_with_a_stream: breaks_its_word("again", 137, "stream 0: gone on with by the side that may");
    exits_with_a_strange_status: breaks_its_word("status", 137, "an exit status 2147483648");
    exits_in_a_far_year: breaks_its_word("year", 137, "an exit at ");
    exits_at_negative_nanos: breaks_its_word("nanos", 137, "an exit at ");
    exits_at_no_time: breaks_its_word("never", 137, "an exit at ");
    answers_what_unpacks_to_much: is_borne("bomb");
    tells_of_many_kills: is_borne("kills");
    panics: dies("panic");
    reboots: dies("reboots");

    hangs: can_be_killed("hangs", NONE, "the guest owes the exit of c for 2 s");
    is_deaf: can_be_killed("deaf", NONE, "the guest owes the exit of c for 2 s");
    does_not_answer_kill: can_be_killed("no-kill", NONE, "the guest owes the exit of c for 2 s");
    lies_of_a_kill: can_be_killed("kill-lies", NONE, "the guest owes the exit of c for 2 s");
    says_it_has_ended: can_be_killed("kill-not-found", NONE, "the guest owes the exit of c for 2 s");
    says_it_is_gone: can_be_killed("kill-unavailable", NONE, "the guest owes the exit of c for 2 s");
    tells_of_init_alone: can_be_killed("init-alone", NONE, "the guest owes the exit of c go for 2 s");
    is_rude: can_be_killed("rude", NONE, "the guest owes the exit of c for 2 s");
    writes_for_ever: can_be_killed("stdout", NONE, "the guest owes the exit of c for 2 s");
    fills_the_log: can_be_killed("console", "debug_console = true", "the guest owes the exit of c");
    does_not_answer_update: can_be_killed("no-update", NONE, NONE);
    does_not_answer_delete: can_be_killed("no-delete", NONE, "the guest owes the end of c for ");
    lies_of_a_delete: can_be_killed("delete-lies", NONE, "the guest owes the end of c for ");
}

/// What unpacks to much is refused or borne, and the VM goes on until it is killed.
fn is_borne(mode: &str) {
    crate::run(async |test| {
        let attacked = Attacked::new(test, mode, "").await;
        let stats = attacked.shim.stats("c");
        let _ = wait::within(PROMISED, "answer of Stats", stats).await;
        attacked.killed().await;
        attacked.ends(137, "").await;
    });
}

/// A guest that just ends.
fn dies(mode: &str) {
    crate::run(async |test| {
        let attacked = Attacked::new(test, mode, "").await;
        attacked.ends(137, "VM of c: ").await;
    });
}

/// A guest whose shim was killed, and that does not speak to the next, ends when it owes its hello for
/// too long; the next shim tells the exits (V14).
#[test]
fn a_guest_that_does_not_go_on_is_ended() {
    crate::run(async |test| {
        let settings = "start_timeout = 70\non_shim_death = \"adopt\"";
        let (bundle, shim, _fifos) = shim(test, "honest", settings).await;
        shim.create(bundle.create()).await.expect("Create");
        let qemu = child(&shim, "-no-user-config");
        shim.start("c", "").await.expect("Start");
        // It can neither read nor hang up.
        wait::signal(qemu, libc::SIGSTOP).unwrap();
        wait::signal(shim.pid(), libc::SIGKILL).unwrap();
        wait::ended(shim.pid()).await;
        let next = Shim::connect(&bundle, shim.answer().clone()).await;
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        wait::ended(qemu).await;
        assert_eq!(next.delete("c", "").await.unwrap().exit_status, 137);
        assert!(
            next.log().contains("the guest owes its hello for 2 s"),
            "{}",
            next.log()
        );
        next.shutdown("c").await.unwrap();
        wait::ended(next.pid()).await;
    });
}

/// A QEMU that is stopped: its guest can do nothing, and SIGKILL and Delete win all the same.
#[test]
fn a_stopped_qemu_can_be_killed() {
    crate::run(async |test| {
        let attacked = Attacked::new(test, "honest", "").await;
        wait::signal(attacked.qemu, libc::SIGSTOP).unwrap();
        let late = refused(attacked.asked().await);
        assert_eq!(late.code, Code::DeadlineExceeded, "{late}");
        attacked.killed().await;
        attacked
            .ends(137, "the guest owes the exit of c for 2 s")
            .await;
    });
}

/// A call without a deadline that the guest never answers keeps no container from being deleted.
#[test]
fn an_update_that_is_not_answered_holds_up_no_delete() {
    crate::run(async |test| {
        let attacked = Attacked::new(test, "no-update", "").await;
        let shim = attacked.shim.clone();
        let asked = tokio::task::spawn_local(async move { shim.update("c", "{}").await });
        // It has been asked before.
        let _ = attacked.shim.stats("c").await;
        attacked.killed().await;
        attacked
            .ends(137, "the guest owes the answer of Update of c for 2 s")
            .await;
        refused(asked.await.unwrap());
    });
}

/// A Start that is not answered ends with its caller, and the container can be killed.
#[test]
fn a_start_that_is_not_answered_ends_with_its_caller() {
    crate::run(async |test| {
        let (bundle, shim, _) = shim(test, "no-start", LONG).await;
        shim.create(bundle.create()).await.unwrap();
        let request = task::StartRequest {
            id: "c".into(),
            ..Default::default()
        };
        let started = shim.call_for(&request, PATIENCE);
        let status = refused(wait::within(PROMISED, "answer of Start", started).await);
        assert_eq!(status.code, Code::DeadlineExceeded, "{status}");
        shim.kill("c", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(test.events().exit("c", "c").await.exit_status, 137);
        shim.delete("c", "").await.unwrap();
        shim.stopped().await;
    });
}
