// SPDX-License-Identifier: Apache-2.0
//! Exec, attach and port-forward: a kubelet's client at the streaming server, over a WebSocket.

use super::api::{AttachRequest, ExecRequest, PortForwardRequest};
use super::{Cri, Pod};
use crate::containerd::DEADLINE;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::TcpStream;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

/// Every message begins with the number of its channel.
const PROTOCOL: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
/// Of a port that is forwarded, both ways; its errors come on the next channel.
pub const DATA: u8 = 0;
pub const ERROR: u8 = 1;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
/// How it ended, as JSON.
const END: u8 = 3;
const RESIZE: u8 = 4;

/// What a stream carries.
#[derive(Clone, Copy, Default)]
pub struct With {
    pub stdin: bool,
    pub tty: bool,
}

/// One end of an exec or an attach. Dropped, it hangs up.
pub struct Stream {
    socket: WebSocket<TcpStream>,
    came: BTreeMap<u8, Vec<u8>>,
    closed: bool,
}

impl Cri {
    #[track_caller]
    pub fn exec(&self, id: &str, with: With, words: &[&str]) -> Stream {
        let url = self.exec_url(ExecRequest {
            container_id: id.to_owned(),
            cmd: words.iter().map(|&word| word.to_owned()).collect(),
            tty: with.tty,
            stdin: with.stdin,
            stdout: true,
            stderr: !with.tty,
        });
        self.stream(&url)
    }

    #[track_caller]
    pub fn attach(&self, id: &str, with: With) -> Stream {
        let url = self.attach_url(AttachRequest {
            container_id: id.to_owned(),
            stdin: with.stdin,
            tty: with.tty,
            stdout: true,
            stderr: !with.tty,
        });
        self.stream(&url)
    }

    /// A connection to a port of the pod.
    #[track_caller]
    pub fn port_forward(&self, pod: &Pod, port: u16) -> Stream {
        let url = self.port_forward_url(PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: vec![port.into()],
        });
        self.stream(&format!("{url}?port={port}"))
    }

    #[track_caller]
    fn stream(&self, url: &str) -> Stream {
        let address = url
            .strip_prefix("http://")
            .unwrap_or_else(|| panic!("not an http URL: {url}"));
        let host = address.split_once('/').map_or(address, |(host, _)| host);
        let tcp = self.network.connect(host);
        tcp.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        let request = format!("ws://{address}").into_client_request();
        let mut request = request.unwrap_or_else(|e| panic!("{url}: {e}"));
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", HeaderValue::from_static(PROTOCOL));
        let (socket, answer) = match tungstenite::client(request, tcp) {
            Ok(both) => both,
            Err(e) => panic!("WebSocket {url}: {e}"),
        };
        let chosen = answer.headers().get("Sec-WebSocket-Protocol");
        assert_eq!(chosen.map(HeaderValue::as_bytes), Some(PROTOCOL.as_bytes()));
        Stream {
            socket,
            came: BTreeMap::new(),
            closed: false,
        }
    }
}

impl Stream {
    pub fn write(&mut self, text: &str) {
        self.send(STDIN, text);
    }

    pub fn resize(&mut self, rows: u16, columns: u16) {
        let size = serde_json::json!({ "Width": columns, "Height": rows });
        self.send(RESIZE, &size.to_string());
    }

    fn send(&mut self, channel: u8, text: &str) {
        let message = [&[channel], text.as_bytes()].concat();
        self.socket
            .send(Message::binary(message))
            .expect("write to a WebSocket");
    }

    /// Takes what comes next; the deadline is the socket's.
    #[track_caller]
    fn receive(&mut self) {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) => {
                let (channel, rest) = bytes.split_first().expect("a channel");
                self.came.entry(*channel).or_default().extend(rest);
            }
            Ok(_) => {}
            Err(
                tungstenite::Error::ConnectionClosed
                | tungstenite::Error::AlreadyClosed
                | tungstenite::Error::Protocol(_),
            ) => self.closed = true,
            Err(e) => panic!("WebSocket: {e}; so far: {}", self.describe()),
        }
    }

    fn text(&self, channel: u8) -> String {
        let bytes = self.came.get(&channel).map_or(&[][..], Vec::as_slice);
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn describe(&self) -> String {
        let channels = self.came.keys();
        channels
            .map(|&channel| format!("{channel}: {:?} ", self.text(channel)))
            .collect()
    }

    /// Waits until `wanted` is in what came on `channel`.
    #[track_caller]
    pub fn expect(&mut self, channel: u8, wanted: &str) {
        while !self.text(channel).contains(wanted) {
            let so_far = self.describe();
            assert!(!self.closed, "closed without {wanted:?}: {so_far}");
            self.receive();
        }
    }

    /// Waits for the end, all that came, and how it ended.
    #[track_caller]
    pub fn finish(mut self) -> Ended {
        while !self.closed {
            self.receive();
        }
        let end = self.text(END);
        Ended {
            stdout: self.text(STDOUT),
            stderr: self.text(STDERR),
            code: code(&end).unwrap_or_else(|| panic!("no exit code: {}", self.describe())),
        }
    }
}

/// All that came of a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

/// `{"status":"Success"}`, or a cause "ExitCode" whose message is the number.
fn code(text: &str) -> Option<i32> {
    let status: Value = serde_json::from_str(text).ok()?;
    if status["status"] == "Success" {
        return Some(0);
    }
    let causes = status["details"]["causes"].as_array()?;
    let cause = causes.iter().find(|cause| cause["reason"] == "ExitCode")?;
    cause["message"].as_str()?.parse().ok()
}
