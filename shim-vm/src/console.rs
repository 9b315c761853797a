//! What the guest's console and the machine's process say: the end of it is kept, and all of it
//! may go to the log.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

/// How many lines are kept, and how long they may be, in bytes.
const LINES: usize = 20;
const LENGTH: usize = 400;

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
            let mut buffer = [0; 512];
            while let Ok(n @ 1..) = from.read(&mut buffer).await {
                for &byte in &buffer[..n] {
                    if byte == b'\n' || line.len() >= LENGTH {
                        console.line(&line, to_log);
                        line.clear();
                    }
                    if byte != b'\n' {
                        line.push(byte);
                    }
                }
            }
            console.line(&line, to_log);
            console.open.send_modify(|open| *open -= 1);
        });
    }

    /// Waits until all that was said is here: who said it has ended.
    pub async fn read_to_end(&self) {
        let mut open = self.open.subscribe();
        // Who sends is there for as long as this is.
        let _ = open.wait_for(|open| *open == 0).await;
    }

    fn line(&self, line: &[u8], to_log: bool) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        if to_log {
            log::info!("guest: {line}");
        }
        let mut lines = self.lines.borrow_mut();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// What is kept, on one line.
    pub fn last(&self) -> String {
        let lines = self.lines.borrow();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        lines.join(" | ")
    }
}
