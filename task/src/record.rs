// SPDX-License-Identifier: Apache-2.0
//! What outlives this process, if it can be brought back: written down before anything of it is heard
//! outside.
//!
//! Whoever lets something out says so first ([`now`]): an answer to a client, an event, a request to a
//! guest, the word that a guest need not keep an event. So one that is killed, wherever that is, goes on
//! from a state that everybody's knowledge fits to. What closes a file that is kept open elsewhere, too,
//! says so as well ([`soon`]).
//!
//! Without a recorder, which most shims are, this does nothing.

use std::cell::RefCell;
use std::rc::Rc;

/// The variable by which who starts a shim says that it looks for another one in the place of one that
/// has died, and what it says then.
pub const ON_SHIM_DEATH: &str = "DUNNAGE_ON_SHIM_DEATH";
pub const ADOPT: &str = "adopt";

/// Who writes it down.
pub trait Recorder {
    /// Writes down what is now, in one step.
    fn now(self: Rc<Self>);

    /// Does so when the loop comes to it.
    fn soon(&self);
}

thread_local! {
    static RECORDER: RefCell<Option<Rc<dyn Recorder>>> = const { RefCell::new(None) };
}

/// From now on `recorder` writes down what is this thread's; `None`: nobody.
pub fn by(recorder: Option<Rc<dyn Recorder>>) {
    RECORDER.set(recorder);
}

fn recorder() -> Option<Rc<dyn Recorder>> {
    RECORDER.with_borrow(Clone::clone)
}

/// True if somebody does: what this process has started may outlive it.
pub fn is_kept() -> bool {
    RECORDER.with_borrow(Option::is_some)
}

/// Something is about to be heard outside.
pub fn now() {
    if let Some(recorder) = recorder() {
        recorder.now();
    }
}

/// Something was closed.
pub fn soon() {
    if let Some(recorder) = recorder() {
        recorder.soon();
    }
}
