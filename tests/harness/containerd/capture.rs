// SPDX-License-Identifier: Apache-2.0
//! What a child process writes, readable while it still writes.

use super::DEADLINE;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// All that came out of a pipe or terminal so far; cheap to clone.
#[derive(Clone)]
pub struct Capture {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl State {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// What comes next; 0 at the end.
///
/// A terminal ends with EIO. The kernel looks for bytes first and for the other side's end then:
/// what the other side wrote in between is there after the first EIO, and nothing after the second.
fn read(source: &mut impl Read, chunk: &mut [u8]) -> usize {
    source
        .read(chunk)
        .or_else(|_| source.read(chunk))
        .unwrap_or(0)
}

impl Capture {
    /// Reads `source` to its end, in a thread.
    pub fn of(mut source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let (it, mut chunk) = (
            Self {
                shared: shared.clone(),
            },
            vec![0; 64 * 1024],
        );
        thread::spawn(move || {
            loop {
                let read = read(&mut source, &mut chunk);
                let mut state = shared.0.lock().expect("capture");
                state.bytes.extend_from_slice(&chunk[..read]);
                state.ended = read == 0;
                shared.1.notify_all();
                if state.ended {
                    return;
                }
            }
        });
        it
    }

    pub fn text(&self) -> String {
        self.shared.0.lock().expect("capture").text()
    }

    /// Waits until `pick` finds what it wants in all that was written so far.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, pick: impl FnMut(&str) -> Option<T>) -> T {
        self.look(DEADLINE, false, pick).unwrap_or_else(|state| {
            let why = if state.ended {
                "ended"
            } else {
                "deadline passed"
            };
            panic!("waited for {what}: {why}; so far:\n{}", state.text())
        })
    }

    /// As `wait_for`, but not for long and without complaint.
    pub fn wait_briefly<T>(
        &self,
        limit: Duration,
        pick: impl FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        self.look(limit, false, pick).ok()
    }

    /// Waits until everyone who could write has closed.
    #[track_caller]
    pub fn end(&self, what: &str) -> String {
        let ended = self.look(DEADLINE, true, |text| Some(text.to_owned()));
        ended.unwrap_or_else(|state| panic!("no end of {what}; so far:\n{}", state.text()))
    }

    /// Shows `pick` the text whenever there is more of it, or only when there will be no more.
    fn look<T>(
        &self,
        limit: Duration,
        at_end: bool,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, State> {
        let end = Instant::now() + limit;
        let (state, changed) = &*self.shared;
        let mut state = state.lock().expect("capture");
        loop {
            if (state.ended || !at_end)
                && let Some(picked) = pick(&state.text())
            {
                return Ok(picked);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return Err(State {
                    bytes: state.bytes.clone(),
                    ended: state.ended,
                });
            }
            state = changed.wait_timeout(state, left).expect("capture").0;
        }
    }
}
