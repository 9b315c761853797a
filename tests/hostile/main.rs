// SPDX-License-Identifier: Apache-2.0
//! The first process of a VM whose guest is the attacker: it speaks the link as the agent does, up to
//! the point where it lies. The file `/mode` of its initrd says how; tests/suite/vm/hostile.rs has the
//! list.
//!
//! Every request it gets first goes to [`attack`], and if that leaves it alone to [`honest`].
//!
//! It can be in QEMU's place, too, where no VM can be: then it is told its mode by the container's id.

mod guest;
mod machine;
mod wire;

use guest::{Guest, MARK, event, honest};
use protos::guest::{Event, Hello, Killed, Notice, notice};
use protos::task::DeleteResponse;
use protos::{Code, Timestamp, events};
use std::fs;
use std::io::Write;
use wire::{AGAIN, Call, DATA, END, OPEN, Wire};

/// Streams 0 and 1 of the link.
const NOTICES: u32 = 0;
const TTRPC: u32 = 1;
/// The protocol of the link.
const VERSION: u32 = 2;
/// Longer than any text that anybody should repeat, and rude to terminals.
const RUDE: usize = 100 << 10;

fn main() {
    let (mode, port) = machine::in_qemus_place().unwrap_or_else(|| {
        machine::mount();
        machine::load_modules();
        let mode = fs::read_to_string("/mode").expect("the mode");
        (mode.trim().to_owned(), machine::port())
    });
    let mode = mode.as_str();
    let mut wire = Wire::new(port);
    match mode {
        "silent" => machine::sleep_for_ever(),
        "reboot" => machine::reboot(),
        "hello-garbage" => {
            wire.frame(NOTICES, DATA, &[0xff; 64]);
            machine::sleep_for_ever()
        }
        _ => {}
    }
    let version = if mode == "hello-version" { 99 } else { VERSION };
    hello(&mut wire, version);
    let mut guest = Guest::default();
    loop {
        let call = wire.call();
        if !attack(mode, &mut wire, &mut guest, &call) {
            honest(&mut wire, &mut guest, &call);
        }
    }
}

fn hello(wire: &mut Wire, version: u32) {
    let hello = Hello {
        version,
        agent: "hostile \x1b[2J".into(),
        kernel: "x".into(),
        uptime_ms: 1,
        started_ms: 1,
    };
    let notice = Some(notice::Notice::Hello(hello));
    wire.notice(&Notice { notice });
}

fn exit(wire: &mut Wire, container: &str, id: &str, status: u32, at: Timestamp) {
    event(
        wire,
        &events::TaskExit {
            container_id: container.into(),
            id: id.into(),
            pid: 7,
            exit_status: status,
            exited_at: Some(at),
        },
    );
}

/// Tells of somebody who was killed for want of memory, in names that nobody should repeat.
fn kill(wire: &mut Wire, id: &str, n: u32) {
    let rude = "\x1b[2J\u{202e}\n".repeat(100);
    let killed = Killed {
        container_id: if n.is_multiple_of(2) {
            id.into()
        } else {
            rude.clone()
        },
        exec_id: n.is_multiple_of(3).then(|| rude.clone()),
        pid: n,
        program: rude.clone(),
        cgroup: rude.clone(),
        exhausted: rude,
        peak_bytes: Some(u64::MAX),
        limit_bytes: Some(0),
        with_group: true,
    };
    let notice = Some(notice::Notice::Killed(killed));
    wire.notice(&Notice { notice });
}

/// What this mode does when it gets this call; false: what an honest guest does.
fn attack(mode: &str, wire: &mut Wire, guest: &mut Guest, call: &Call) -> bool {
    let method = call.request.method.as_str();
    match (mode, method) {
        // Calls without an answer.
        ("no-configure", "Configure") | ("no-time", "GetTime") | ("no-create", "Create") => {}
        ("no-start", "Start") | ("no-delete", "Delete") | ("no-update", "Update") => {}
        ("no-kill", "Kill") | ("no-dial", "Dial") => {}
        ("dial-floods", "Dial") => {
            wire.answer(call, &protos::guest::Empty {});
            // As much as it has credit for, of which nobody reads a byte.
            let stream = guest::dial_of(call).stream;
            (0..8).for_each(|_| wire.frame(stream, DATA, &[b'x'; 16 << 10]));
        }
        ("deaf", "Kill" | "Update" | "Delete" | "Stats" | "PowerOff") => {}
        // And calls with a false one.
        ("kill-lies", "Kill") => wire.answer(call, &protos::guest::Empty {}),
        ("init-alone", "Kill") => {
            let id = guest::kill_of(call).id;
            exit(wire, &id, &id, 137, machine::now());
            wire.answer(call, &protos::guest::Empty {});
        }
        ("kill-not-found", "Kill") => wire.refuse(call, Code::NotFound, "process already finished"),
        ("kill-unavailable", "Kill" | "Update") => wire.refuse(call, Code::Unavailable, "gone"),
        ("delete-lies", "Delete") => wire.answer(call, &DeleteResponse::default()),
        ("not-found", "Update") => wire.refuse(call, Code::NotFound, "no such container"),
        ("rude", "Kill" | "Update" | "Delete" | "Pause" | "Stats") => {
            let text = "\x1b[2J\u{202e}\n".repeat(RUDE / 8);
            wire.refuse(call, Code::Internal, &text);
        }
        ("big-answer", "Update") => {
            wire.ttrpc(call.stream, 5 << 20, &vec![0; 1 << 16]);
            machine::sleep_for_ever()
        }
        ("answer-garbage", "Update") => wire.ttrpc(call.stream, 8, &[0xff; 8]),
        ("update-garbage", "Update") => wire.answer_bytes(call, vec![0xff; 8]),
        // Many empty messages: small on the wire, and large where they are unpacked.
        ("bomb", "Stats") => wire.answer_bytes(call, [10, 0].repeat(60 << 10)),
        // After the honest start of an exec.
        (_, "Start") if !guest::start_of(call).exec_id.is_empty() => {
            honest(wire, guest, call);
            after_start(mode, wire, guest, call);
        }
        _ => return false,
    }
    true
}

fn after_start(mode: &str, wire: &mut Wire, guest: &mut Guest, call: &Call) {
    let start = guest::start_of(call);
    let (id, exec) = (start.id.as_str(), start.exec_id.as_str());
    let now = machine::now();
    let at = |seconds, nanos| Timestamp { seconds, nanos };
    let unknown = |name: &str| events::TaskOom {
        container_id: name.into(),
    };
    match mode {
        "hello-twice" => hello(wire, VERSION),
        "huge-frame" => wire.header(NOTICES, DATA, 0xff_ffff),
        "unknown-frame" => wire.frame(NOTICES, 77, b""),
        "never-opened" => wire.frame(9_999, DATA, b"x"),
        "open" => (0..2_000).for_each(|n| {
            wire.frame(10_000 + n, OPEN, b"");
            wire.frame(10_000 + n, DATA, &[1; 16 << 10]);
        }),
        "window" => loop {
            wire.frame(guest.stdout, DATA, &[b'x'; 16 << 10]);
        },
        "stdout" => guest.writes_for_ever(wire),
        "close-ttrpc" => wire.frame(TTRPC, END, b""),
        "close-notices" => wire.frame(NOTICES, END, b""),
        "notice-long" => wire.frame(NOTICES, DATA, &[0xff, 0xff, 0xff, 0x7f, 0]),
        "notice-garbage" => wire.frame(NOTICES, DATA, &[3, 0xff, 0xff, 0xff]),
        "unmade-answer" => wire.ttrpc(999_999, 0, b""),
        "events" => loop {
            event(wire, &unknown(id));
        },
        "kills" => (0..10_000).for_each(|n| kill(wire, id, n)),
        "event-garbage" => {
            let event = Some(protos::Any {
                type_url: "x".into(),
                value: Vec::new(),
            });
            let event = Event {
                number: wire.events + 1,
                timestamp: None,
                event,
            };
            let notice = Some(notice::Notice::Event(event));
            wire.notice(&Notice { notice });
        }
        "unknown-container" => event(wire, &unknown("nobody")),
        "unknown-process" => exit(wire, id, "nobody\x1b[2J", 0, now),
        "second-start" => event(
            wire,
            &events::TaskStart {
                container_id: id.into(),
                pid: 1,
            },
        ),
        "second-exit" => {
            exit(wire, id, exec, 3, now);
            exit(wire, id, exec, 4, now);
        }
        "unasked-delete" => event(
            wire,
            &events::TaskDelete {
                container_id: id.into(),
                ..Default::default()
            },
        ),
        "number" => {
            wire.events += 1;
            exit(wire, id, exec, 0, now);
        }
        "again" => wire.frame(NOTICES, AGAIN, b""),
        "status" => exit(wire, id, exec, 1 << 31, now),
        "year" => exit(wire, id, exec, 0, at(31_556_889_864_403_199, 0)),
        "nanos" => exit(wire, id, exec, 0, at(now.seconds, -1)),
        "never" => exit(wire, id, exec, 0, at(-62_135_596_800, 0)),
        "panic" => panic!("{MARK}"),
        "reboots" => machine::reboot(),
        "hangs" => machine::sleep_for_ever(),
        "eats" => loop {
            std::mem::forget(vec![1u8; 1 << 20]);
        },
        "console" => {
            let mut console = fs::File::options()
                .write(true)
                .open("/dev/ttyS0")
                .expect("the console");
            loop {
                let _ = console.write_all(b"\x1b[2J spam spam spam spam\n");
            }
        }
        _ => {}
    }
}
