// SPDX-License-Identifier: Apache-2.0
//! ttrpc, containerd's RPC for local sockets (contract B53, B54), on a single-threaded runtime.
//!
//! Both ends spawn local tasks, so they run inside a `tokio::runtime::LocalRuntime`
//! (or a `LocalSet`). Streams of messages are not spoken: no API of a shim has one.

mod api;
mod calls;
mod client;
mod connection;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod pending;
mod server;
mod service;
mod trace;

pub(crate) use api::api;
pub use api::{Call, decode};
pub use calls::{Ongoing, first_two};
pub use client::{CallError, Client};
pub use frame::{Frame, Kind, MAX_PAYLOAD, ReadError, read_frame, write_frame};
pub use server::{Handle, MovedConnection, Server};
pub use service::{Answer, Context, Request, Service, Waited, Waiting};
pub use trace::{CALLER, Trace, hex};

/// The envelope messages of a call.
pub mod wire {
    pub use crate::generated::ttrpc::{KeyValue, Request, Response, Status};
}

#[cfg(test)]
#[path = "../../../fuzz/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// Valid connections: one request, two, and one that is told to be too long.
    fn connections() -> Vec<Vec<u8>> {
        let request = |service: &str| wire::Request {
            service: service.into(),
            method: "Say".into(),
            payload: b"hello".to_vec(),
            timeout_nano: 1_000_000,
            metadata: vec![wire::KeyValue {
                key: "k".into(),
                value: "v".into(),
            }],
        };
        let frame = |stream: u32, payload: &[u8]| {
            let length = (payload.len() as u32).to_be_bytes();
            let header = [&length[..], &stream.to_be_bytes(), &[1, 0]].concat();
            [&header[..], payload].concat()
        };
        let one = frame(1, &request("echo").encode_to_vec());
        let two = [one.clone(), frame(3, &request("none").encode_to_vec())].concat();
        let mut long = one.clone();
        long[1] = 0x7f;
        let far = wire::Request {
            timeout_nano: i64::MAX,
            ..request("echo")
        };
        let far = frame(1, &far.encode_to_vec());
        vec![one, two, long, far, frame(2, b""), Vec::new()]
    }

    #[test]
    fn no_bytes_upset_the_frame_reader() {
        mutate::inputs(&connections(), fuzz::frame);
    }

    #[test]
    fn no_bytes_upset_the_server() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default())
            .unwrap();
        mutate::inputs(&connections(), |input| {
            runtime.block_on(fuzz::server(input))
        });
    }
}
