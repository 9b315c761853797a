// SPDX-License-Identifier: Apache-2.0
//! What an honest guest would do, as far as its host can see.

use crate::wire::{Call, END, Wire};
use crate::{exit, machine};
use protos::guest::{
    DialRequest, Empty, Event, Notice, PutBundleRequest, PutBundleResponse, TimeResponse, notice,
};
use protos::task::*;
use protos::task_types::Status;
use protos::{Any, Message, Name, any, events};
use std::collections::HashMap;

/// What a panic says.
pub const MARK: &str = "the hostile guest panics";
const KILLED: u32 = 137;
const SIGKILL: u32 = 9;

/// What there is to know of its containers.
#[derive(Default)]
pub struct Guest {
    /// The link's stream that the last container's init writes to.
    pub stdout: u32,
    /// And its stderr.
    stderr: u32,
    /// Execs that run.
    execs: Vec<String>,
    /// The status of each container that has ended.
    ended: HashMap<String, u32>,
}

impl Guest {
    pub fn writes_for_ever(&self, wire: &mut Wire) -> ! {
        loop {
            wire.send(self.stdout, &[b'x'; 16 << 10]);
        }
    }
}

/// Tells an event.
pub fn event<M: Name>(wire: &mut Wire, event: &M) {
    let event: Option<Any> = Some(any::pack(event));
    wire.events += 1;
    let event = Event {
        number: wire.events,
        timestamp: Some(machine::now()),
        event,
    };
    let notice = Some(notice::Notice::Event(event));
    wire.notice(&Notice { notice });
}

/// Init has ended, and with it its execs.
fn ended(wire: &mut Wire, guest: &mut Guest, id: &str, status: u32) {
    if guest.ended.insert(id.into(), status).is_none() {
        for exec in guest.execs.drain(..) {
            exit(wire, id, &exec, KILLED, machine::now());
        }
        exit(wire, id, id, status, machine::now());
        for stream in [guest.stdout, guest.stderr].into_iter().filter(|&n| n > 0) {
            wire.frame(stream, END, b"");
        }
    }
}

/// 0 for none.
fn stream_of(name: &str) -> u32 {
    let number = name.strip_prefix("stream://");
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

pub fn start_of(call: &Call) -> StartRequest {
    asked(call)
}

pub fn kill_of(call: &Call) -> KillRequest {
    asked(call)
}

pub fn dial_of(call: &Call) -> DialRequest {
    asked(call)
}

fn asked<M: Message + Default>(call: &Call) -> M {
    M::decode(call.request.payload.as_slice()).expect("what is asked")
}

pub fn honest(wire: &mut Wire, guest: &mut Guest, call: &Call) {
    match call.request.method.as_str() {
        "GetTime" => {
            let time = Some(machine::now());
            wire.answer(call, &TimeResponse { time });
        }
        "PutBundle" => {
            let bundle = format!("/run/bundles/{}", asked::<PutBundleRequest>(call).id);
            wire.answer(call, &PutBundleResponse { bundle });
        }
        "Create" => {
            let create: CreateTaskRequest = asked(call);
            guest.stdout = stream_of(&create.stdout);
            guest.stderr = stream_of(&create.stderr);
            let container_id = create.id;
            event(
                wire,
                &events::TaskCreate {
                    container_id,
                    ..Default::default()
                },
            );
            wire.answer(call, &CreateTaskResponse { pid: 42 });
        }
        "Start" => {
            let StartRequest { id, exec_id } = asked(call);
            if exec_id.is_empty() {
                let container_id = id;
                event(
                    wire,
                    &events::TaskStart {
                        container_id,
                        pid: 42,
                    },
                );
            } else {
                let container_id = id;
                guest.execs.push(exec_id.clone());
                event(
                    wire,
                    &events::TaskExecStarted {
                        container_id,
                        exec_id,
                        pid: 43,
                    },
                );
            }
            wire.answer(call, &StartResponse { pid: 42 });
        }
        "Exec" => {
            let exec: ExecProcessRequest = asked(call);
            event(
                wire,
                &events::TaskExecAdded {
                    container_id: exec.id,
                    exec_id: exec.exec_id,
                },
            );
            wire.answer(call, &Empty {});
        }
        "State" => {
            let StateRequest { id, .. } = asked(call);
            let ended = guest.ended.get(&id).copied();
            let status = ended.map_or(Status::Running, |_| Status::Stopped);
            let never = protos::Timestamp {
                seconds: -62_135_596_800,
                nanos: 0,
            };
            let exited_at = Some(ended.map_or(never, |_| machine::now()));
            let state = StateResponse {
                id,
                status: status.into(),
                exit_status: ended.unwrap_or(0),
                exited_at,
                ..Default::default()
            };
            wire.answer(call, &state);
        }
        "Kill" => {
            let kill: KillRequest = asked(call);
            wire.answer(call, &Empty {});
            if kill.signal == SIGKILL {
                ended(wire, guest, &kill.id, KILLED);
            }
        }
        "Delete" => {
            let DeleteRequest { id, .. } = asked(call);
            let exited_at = Some(machine::now());
            let exit_status = guest.ended.get(&id).copied().unwrap_or(KILLED);
            event(
                wire,
                &events::TaskDelete {
                    container_id: id,
                    ..Default::default()
                },
            );
            let deleted = DeleteResponse {
                pid: 42,
                exit_status,
                exited_at,
            };
            wire.answer(call, &deleted);
        }
        // Answered when there is an answer: never.
        "Wait" => {}
        "PowerOff" => machine::reboot(),
        _ => wire.answer(call, &Empty {}),
    }
}
