// SPDX-License-Identifier: Apache-2.0
//! What a shim has done so far, in numbers, for who asks: how often, how long, and how it ended.

use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// The bounds of the lengths of time that are counted apart, in seconds; the last has none.
pub const BOUNDS: [f64; 6] = [0.005, 0.02, 0.1, 0.5, 2.0, 10.0];
/// So many names are told apart; what comes then is another.
const NAMES: usize = 32;
const OTHER: &str = "other";

/// Something that is done again and again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    pub name: String,
    pub count: u64,
    pub failed: u64,
    pub seconds: f64,
    /// How often it took at most as long as each of [`BOUNDS`], and longer than the one before.
    pub within: [u64; BOUNDS.len()],
}

/// All that is counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Of the Task API, by method; how long is not told of those that only wait.
    pub calls: Vec<Times>,
    /// Of the OCI runtime, by command.
    pub runtime: Vec<Times>,
    pub exits: u64,
    pub ooms: u64,
}

thread_local! {
    static CALLS: RefCell<Vec<Times>> = const { RefCell::new(Vec::new()) };
    static RUNTIME: RefCell<Vec<Times>> = const { RefCell::new(Vec::new()) };
    static EXITS: Cell<u64> = const { Cell::new(0) };
    static OOMS: Cell<u64> = const { Cell::new(0) };
}

impl Tally {
    /// What this thread, which is the loop's, has counted.
    pub fn now() -> Self {
        Self {
            calls: CALLS.with_borrow(Clone::clone),
            runtime: RUNTIME.with_borrow(Clone::clone),
            exits: EXITS.get(),
            ooms: OOMS.get(),
        }
    }
}

/// A call is answered; it took so long, if that says anything.
pub fn call(method: &str, took: Option<Duration>, failed: bool) {
    CALLS.with_borrow_mut(|calls| of(calls, method).add(took, failed));
}

/// A command of the OCI runtime has ended.
pub fn runtime(command: &str, took: Duration, failed: bool) {
    RUNTIME.with_borrow_mut(|commands| of(commands, command).add(Some(took), failed));
}

pub fn exit() {
    EXITS.set(EXITS.get() + 1);
}

pub fn oom() {
    OOMS.set(OOMS.get() + 1);
}

fn of<'a>(all: &'a mut Vec<Times>, name: &str) -> &'a mut Times {
    let known = |name: &str, all: &[Times]| all.iter().position(|one| one.name == name);
    let is_full = all.len() >= NAMES;
    let at = known(name, all).or_else(|| known(OTHER, all).filter(|_| is_full));
    let at = at.unwrap_or_else(|| {
        all.push(Times {
            name: if is_full { OTHER } else { name }.to_owned(),
            ..Times::default()
        });
        all.len() - 1
    });
    &mut all[at]
}

impl Times {
    fn add(&mut self, took: Option<Duration>, failed: bool) {
        self.count += 1;
        self.failed += u64::from(failed);
        let Some(seconds) = took.map(|took| took.as_secs_f64()) else {
            return;
        };
        self.seconds += seconds;
        if let Some(at) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.within[at] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_counted_by_name_and_length() {
        let mut all = Vec::new();
        for (millis, failed) in [(1, false), (5, false), (6, true), (11_000, true)] {
            let took = Duration::from_millis(millis);
            of(&mut all, "Start").add(Some(took), failed);
        }
        of(&mut all, "Wait").add(None, false);
        let start = &all[0];
        assert_eq!((start.count, start.failed), (4, 2));
        assert_eq!(start.within, [2, 1, 0, 0, 0, 0]);
        assert!((start.seconds - 11.012).abs() < 1e-9);
        assert_eq!((all[1].count, all[1].seconds), (1, 0.0));
    }

    /// A client may call what it likes.
    #[test]
    fn names_are_so_many_and_no_more() {
        let mut all = Vec::new();
        for n in 0..100 {
            of(&mut all, &n.to_string()).add(None, true);
        }
        assert_eq!(all.len(), NAMES + 1);
        assert_eq!((&*all[NAMES].name, all[NAMES].count), (OTHER, 68));
    }
}
