// SPDX-License-Identifier: Apache-2.0
//! Work that may wait in the kernel: it is done on a thread beside the loop, which goes on meanwhile.
//!
//! A disk that stands still, a server that is gone or a device that hangs keeps the thread that waits
//! for it, and nobody else. A thread that is done stays a moment for what comes next, so that a busy
//! stream costs no thread for each of its writes; then it ends, and an idle process has none but the
//! loop's. What may be done on the loop, and what not, is in docs/architecture.md.

use crate::sys;
use std::collections::VecDeque;
use std::io;
use std::os::unix::thread::{JoinHandleExt, RawPthread};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

/// What a thread's stack may grow to, in bytes; the work needs a fraction of it.
const STACK: usize = 256 * 1024;
/// And what it may grow to for work that goes as deep as somebody else's directories: as the loop's.
const DEEP: usize = 8 << 20;
/// How long a thread that has nothing to do stays.
const STAY: Duration = Duration::from_millis(100);

type Work = Box<dyn FnOnce() + Send>;

struct Threads {
    /// For each of these there is a thread that will take it now: nothing waits behind what is stuck.
    given: VecDeque<Work>,
    idle: usize,
    /// Pieces of work whose outcome nobody has taken yet.
    under_way: usize,
    holds: usize,
    /// Those that were started, and whose memory is not back.
    started: Vec<RawPthread>,
    /// How many of these are about to end, or have ended.
    ending: usize,
    /// Whether there is who gives their memory back.
    is_swept: bool,
}

static THREADS: Mutex<Threads> = Mutex::new(Threads {
    given: VecDeque::new(),
    idle: 0,
    under_way: 0,
    holds: 0,
    started: Vec::new(),
    ending: 0,
    is_swept: false,
});
static GIVEN: Condvar = Condvar::new();
static CHANGED: Notify = Notify::const_new();
static ENDING: Notify = Notify::const_new();

fn threads() -> MutexGuard<'static, Threads> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the files that [`run`] and [`forget`] are for are in memory: then nothing waits.
static IN_MEMORY: AtomicBool = AtomicBool::new(false);

/// Says so, for all of this process: as in a VM's guest, whose bundles are on a tmpfs of its own. A
/// thread costs a guest without KVM a millisecond.
pub fn files_are_in_memory() {
    IN_MEMORY.store(true, Ordering::Relaxed);
}

/// Whether that was said: then a thread costs more than it brings.
pub fn is_in_memory() -> bool {
    IN_MEMORY.load(Ordering::Relaxed)
}

/// Does `work`, and gives what came of it. Who stops waiting does not stop the work. It is done here
/// and now if files are in memory.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match IN_MEMORY.load(Ordering::Relaxed) {
        true => work(),
        false => beside(work).await,
    }
}

/// [`run`], for what may wait wherever other files are.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = oneshot::channel();
    let under_way = UnderWay::new();
    give(Box::new(move || {
        // Nobody may be waiting any more.
        let _ = done.send((work(), under_way));
    }));
    match result.await {
        Ok((outcome, _under_way)) => outcome,
        // It has panicked, and that ends the process.
        Err(_) => std::future::pending().await,
    }
}

/// Does `work`, for which nobody waits.
pub fn forget(work: impl FnOnce() + Send + 'static) {
    if IN_MEMORY.load(Ordering::Relaxed) {
        return work();
    }
    let under_way = UnderWay::new();
    give(Box::new(move || {
        work();
        drop(under_way);
    }));
}

/// [`run`] on a thread that ends with it: for work that changes what belongs to the thread, such as
/// its working directory or its namespaces.
///
/// # Errors
/// The work's, or that there can be no thread.
pub async fn alone<T: Send + 'static, E: From<io::Error> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    by(thread(), work).await
}

/// [`run`] on a thread with a large stack, which ends with it: for work that calls itself for each
/// directory of a tree.
///
/// # Errors
/// The work's, or that there can be no thread.
pub async fn deep<T: Send + 'static, E: From<io::Error> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    by(thread().stack_size(DEEP), work).await
}

async fn by<T: Send + 'static, E: From<io::Error> + Send + 'static>(
    thread: Builder,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let (done, result) = oneshot::channel();
    let under_way = UnderWay::new();
    start(thread, move || {
        let _ = done.send((work(), under_way));
    })?;
    let (outcome, _under_way) = result.await.map_err(io::Error::other)?;
    outcome
}

/// Waits until nothing is under way.
pub async fn done() {
    loop {
        let changed = CHANGED.notified();
        if threads().under_way == 0 {
            return;
        }
        changed.await;
    }
}

/// True if nothing is under way.
pub fn is_done() -> bool {
    under_way() == 0
}

/// Of how many pieces of work nobody has taken the outcome yet.
pub fn under_way() -> usize {
    threads().under_way
}

/// While one lives, what never ends by itself begins no further work: see [`may_begin`].
pub struct Hold(());

/// Has those that ask [`may_begin`] wait, until the answer is dropped.
pub fn hold() -> Hold {
    threads().holds += 1;
    Hold(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        threads().holds -= 1;
        CHANGED.notify_waiters();
    }
}

/// Waits while there is a [`Hold`].
pub async fn may_begin() {
    loop {
        let changed = CHANGED.notified();
        if threads().holds == 0 {
            return;
        }
        changed.await;
    }
}

/// A piece of work, from before it begins until its outcome is taken, or nobody will take it.
struct UnderWay(());

impl UnderWay {
    fn new() -> Self {
        threads().under_way += 1;
        Self(())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        threads().under_way -= 1;
        CHANGED.notify_waiters();
    }
}

fn thread() -> Builder {
    Builder::new().name("aside".to_owned()).stack_size(STACK)
}

fn give(work: Work) {
    #[cfg(test)]
    let Some(work) = by_hand::keep(work) else {
        return;
    };
    let mut all = threads();
    all.given.push_back(work);
    if all.idle >= all.given.len() {
        GIVEN.notify_one();
        return;
    }
    drop(all);
    if let Err(e) = start(thread(), take) {
        // Late is better than never: a limit on threads must not lose an exit.
        log::warn!("no thread beside the loop: {e}");
        let work = threads().given.pop_back();
        if let Some(work) = work {
            work();
        }
    }
}

/// Starts a thread. The C library would keep the stack of the last that has ended; so they are joined.
fn start(thread: Builder, life: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let started = thread.spawn(|| {
        life();
        threads().ending += 1;
        ENDING.notify_one();
    })?;
    let mut all = threads();
    all.started.push(started.into_pthread_t());
    // One that was started beside the loop is left to who is started next.
    if !all.is_swept && Handle::try_current().is_ok() {
        all.is_swept = true;
        drop(all);
        tokio::spawn(sweep());
    }
    Ok(())
}

/// Gives back what threads held, until there is none any more. It does not wait in the kernel for one
/// that has told of its end and does not come to it on a busy machine.
async fn sweep() {
    loop {
        ENDING.notified().await;
        let mut pause = Duration::from_millis(1);
        while join_ended() > 0 {
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        let mut all = threads();
        if all.started.is_empty() {
            all.is_swept = false;
            return;
        }
    }
}

/// How many are still about to end.
fn join_ended() -> usize {
    let mut all = threads();
    let before = all.started.len();
    all.started.retain(|thread| !sys::join_if_ended(*thread));
    all.ending = all.ending.saturating_sub(before - all.started.len());
    all.ending
}

/// A thread's life.
fn take() {
    let mut all = threads();
    loop {
        while let Some(work) = all.given.pop_front() {
            drop(all);
            work();
            all = threads();
        }
        all.idle += 1;
        let (again, waited) = GIVEN
            .wait_timeout(all, STAY)
            .unwrap_or_else(PoisonError::into_inner);
        all = again;
        all.idle -= 1;
        if waited.timed_out() && all.given.is_empty() {
            return;
        }
    }
}

/// For a test that says itself when a piece of work is done: there is no thread then.
#[cfg(test)]
pub mod by_hand {
    use super::Work;
    use std::cell::RefCell;

    thread_local! {
        static KEPT: RefCell<Option<Vec<Work>>> = const { RefCell::new(None) };
    }

    /// From now on, what this thread has done beside it is kept for [`do_one`].
    pub fn begin() {
        KEPT.set(Some(Vec::new()));
    }

    pub(super) fn keep(work: Work) -> Option<Work> {
        KEPT.with_borrow_mut(|kept| match kept {
            Some(kept) => {
                kept.push(work);
                None
            }
            None => Some(work),
        })
    }

    /// How much waits to be done.
    pub fn kept() -> usize {
        KEPT.with_borrow(|kept| kept.as_ref().map_or(0, Vec::len))
    }

    /// Does the piece of work at `n`, in the order in which they came.
    pub fn do_one(n: usize) {
        let work = KEPT.with_borrow_mut(|kept| kept.as_mut().map(|kept| kept.remove(n)));
        if let Some(work) = work {
            work();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// What waits for ever holds up nothing that comes later.
    #[tokio::test]
    async fn nothing_waits_behind_what_is_stuck() {
        let (go_on, stuck) = mpsc::channel::<()>();
        let first = tokio::spawn(run(move || stuck.recv().is_err()));
        for n in 0..100 {
            assert_eq!(run(move || n).await, n);
        }
        assert!(!first.is_finished());
        drop(go_on);
        assert!(first.await.unwrap());
    }
}
