// SPDX-License-Identifier: Apache-2.0
//! The link as bytes: frames of the mux, and ttrpc in those of one stream.

use crate::{NOTICES, TTRPC};
use protos::guest::Notice;
use protos::ttrpc::wire;
use protos::{Code, Message};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};

/// Kinds of frames.
pub const OPEN: u8 = 1;
pub const DATA: u8 = 2;
pub const END: u8 = 3;
const CREDIT: u8 = 5;
pub const AGAIN: u8 = 6;
/// The most data in a frame, and what a stream may send at first.
const MOST: usize = 16 << 10;
const WINDOW: usize = 128 << 10;

/// A request, and the ttrpc stream that its answer goes to.
pub struct Call {
    pub stream: u32,
    pub request: wire::Request,
}

/// The port, and what came over it.
pub struct Wire {
    port: File,
    received: Vec<u8>,
    ttrpc: Vec<u8>,
    /// How many events were told.
    pub events: u64,
    /// What may be sent.
    credit: HashMap<u32, usize>,
}

impl Wire {
    pub fn new(port: File) -> Self {
        Self {
            port,
            received: Vec::new(),
            ttrpc: Vec::new(),
            events: 0,
            credit: HashMap::new(),
        }
    }

    /// The beginning of a frame, true or not.
    pub fn header(&mut self, stream: u32, kind: u8, length: u32) {
        let [_, a, b, c] = length.to_be_bytes();
        let header = [&stream.to_be_bytes()[..], &[kind, a, b, c]].concat();
        self.port.write_all(&header).expect("the port");
    }

    /// A frame, whatever the stream may send.
    pub fn frame(&mut self, stream: u32, kind: u8, payload: &[u8]) {
        self.header(stream, kind, payload.len() as u32);
        self.port.write_all(payload).expect("the port");
    }

    /// Data, as fast as the host takes it.
    pub fn send(&mut self, stream: u32, mut data: &[u8]) {
        while !data.is_empty() {
            let credit = *self.credit.entry(stream).or_insert(WINDOW);
            let n = data.len().min(credit).min(MOST);
            if n == 0 {
                self.receive();
                continue;
            }
            self.credit.insert(stream, credit - n);
            self.frame(stream, DATA, &data[..n]);
            data = &data[n..];
        }
    }

    pub fn notice(&mut self, notice: &Notice) {
        self.send(NOTICES, &notice.encode_length_delimited_to_vec());
    }

    /// A ttrpc response that says to have `length` bytes.
    pub fn ttrpc(&mut self, stream: u32, length: u32, payload: &[u8]) {
        let header = [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[2, 0]].concat();
        self.send(TTRPC, &[&header, payload].concat());
    }

    fn respond(&mut self, call: &Call, response: wire::Response) {
        let response = response.encode_to_vec();
        self.ttrpc(call.stream, response.len() as u32, &response);
    }

    pub fn answer_bytes(&mut self, call: &Call, payload: Vec<u8>) {
        let status = None;
        self.respond(call, wire::Response { status, payload });
    }

    pub fn answer(&mut self, call: &Call, message: &impl Message) {
        self.answer_bytes(call, message.encode_to_vec());
    }

    pub fn refuse(&mut self, call: &Call, code: Code, text: &str) {
        let status = Some(wire::Status {
            code: code as i32,
            message: text.into(),
            details: Vec::new(),
        });
        let payload = Vec::new();
        self.respond(call, wire::Response { status, payload });
    }

    /// Waits for what the host asks next.
    pub fn call(&mut self) -> Call {
        loop {
            if let Some(call) = self.take_call() {
                return call;
            }
            self.receive();
        }
    }

    fn take_call(&mut self) -> Option<Call> {
        let word = |at: usize| {
            let bytes = self.ttrpc.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
        };
        let (length, stream) = (word(0)? as usize, word(4)?);
        let payload = self.ttrpc.get(10..10 + length)?;
        let request = wire::Request::decode(payload).expect("a request");
        self.ttrpc.drain(..10 + length);
        Some(Call { stream, request })
    }

    /// Takes frames from the host until there was news.
    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        let n = self.port.read(&mut buffer).expect("the port");
        self.received.extend_from_slice(&buffer[..n]);
        while let Some(&[a, b, c, d, kind, x, y, z]) = self.received.first_chunk() {
            let stream = u32::from_be_bytes([a, b, c, d]);
            let length = u32::from_be_bytes([0, x, y, z]) as usize;
            if self.received.len() < 8 + length {
                return;
            }
            let payload: Vec<u8> = self.received.drain(..8 + length).skip(8).collect();
            match (stream, kind) {
                (TTRPC, DATA) => self.ttrpc.extend(payload),
                (_, CREDIT) => {
                    let more = u32::from_be_bytes(payload.try_into().expect("credit"));
                    *self.credit.entry(stream).or_insert(WINDOW) += more as usize;
                }
                _ => {}
            }
        }
    }
}
