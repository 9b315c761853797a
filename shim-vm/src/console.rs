//! What the guest's console and the machine's process say: the end of it is kept, and it may go to
//! the log, as far as a log bears it.

use crate::word::Allowance;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

/// How many lines are kept, and how long they may be, in bytes.
const LINES: usize = 20;
const LENGTH: usize = 400;
/// How many lines go to the log at once, and a second after that: enough for a boot that tells all.
const LOGGED: (u32, u32) = (500, 20);

/// The last lines; clones share them.
#[derive(Clone, Default)]
pub struct Console {
    lines: Rc<RefCell<VecDeque<String>>>,
    /// How many are still read.
    open: Rc<watch::Sender<usize>>,
}

impl Console {
    /// Reads `from` to its end. `to_log`: every line goes to the log too.
    pub fn read(&self, mut from: impl AsyncRead + Unpin + 'static, to_log: bool) {
        let console = self.clone();
        self.open.send_modify(|open| *open += 1);
        tokio::task::spawn_local(async move {
            let mut line = Vec::new();
            let mut log = to_log.then(Log::new);
            let mut buffer = [0; 512];
            while let Ok(n @ 1..) = from.read(&mut buffer).await {
                for &byte in &buffer[..n] {
                    if byte == b'\n' || line.len() >= LENGTH {
                        console.line(&line, log.as_mut());
                        line.clear();
                    }
                    if byte != b'\n' {
                        line.push(byte);
                    }
                }
            }
            console.line(&line, log.as_mut());
            console.open.send_modify(|open| *open -= 1);
        });
    }

    /// Waits until all that was said is here: who said it has ended.
    pub async fn read_to_end(&self) {
        let mut open = self.open.subscribe();
        // Who sends is there for as long as this is.
        let _ = open.wait_for(|open| *open == 0).await;
    }

    fn line(&self, line: &[u8], log: Option<&mut Log>) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        // What a terminal would obey is no more than text.
        let line: String = line
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        if let Some(log) = log {
            log.line(&line);
        }
        let mut lines = self.lines.borrow_mut();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// What is kept, on one line.
    pub fn last(&self) -> String {
        let lines = self.lines.borrow();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        lines.join(" | ")
    }
}

/// The way of a console into the log.
struct Log {
    allowance: Allowance,
    left_out: u64,
}

impl Log {
    fn new() -> Self {
        let (most, a_second) = LOGGED;
        Self {
            allowance: Allowance::new(most, a_second),
            left_out: 0,
        }
    }

    fn line(&mut self, line: &str) {
        if !self.allowance.take() {
            self.left_out += 1;
            return;
        }
        if self.left_out > 0 {
            log::warn!("guest: {} lines are left out", self.left_out);
            self.left_out = 0;
        }
        log::info!("guest: {line}");
    }
}
