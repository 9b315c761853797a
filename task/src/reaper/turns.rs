// SPDX-License-Identifier: Apache-2.0
//! Turns for commands that keep a processor busy, such as an OCI runtime's: so much work is begun at once
//! as the processors have done in a moment. More would only keep each other and the loop from running.
//!
//! How much work a command is, those before it of the same program have shown: an exec is 14 ms of a
//! processor with runc, and 3 ms with crun, which waits for the kernel most of the time.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The work, in microseconds of a processor's time, that is under way at once for each processor.
const AT_ONCE: u32 = 30_000;
/// A command counts for so much, in microseconds: also one of which nothing is known, and one that is
/// more. So there are two at least for each processor.
const MOST: u32 = AT_ONCE / 2;
/// And at least for so much.
const LEAST: u32 = 1000;
/// What a command has had the kernel do may be of use to one that is begun so soon after it.
const MOMENT: Duration = Duration::from_millis(10);
/// So many programs are told apart.
const PROGRAMS: usize = 16;

/// Who may go, and who waits.
pub struct Turns {
    /// Its permits are microseconds of work.
    work: Semaphore,
    /// What a command of a program counts for.
    known: RefCell<Vec<(String, u32)>>,
    /// When one was expected last, or has ended.
    last: Cell<Option<Instant>>,
}

impl Turns {
    pub(super) fn new(processors: usize) -> Self {
        Self {
            work: Semaphore::new(processors * AT_ONCE as usize),
            known: RefCell::default(),
            last: Cell::default(),
        }
    }

    /// Waits for a turn to run a command of `program`; it lasts until the answer is dropped.
    pub async fn next(&self, program: &str) -> Option<SemaphorePermit<'_>> {
        let work = self.work_of(program);
        // Only a semaphore that is closed refuses, and this one never is.
        self.work.acquire_many(work).await.ok()
    }

    /// One is to come: whether none was expected, and none has ended, for a moment.
    pub fn is_first(&self) -> bool {
        let is_first = self.last.get().is_none_or(|last| last.elapsed() > MOMENT);
        if is_first {
            self.last.set(Some(Instant::now()));
        }
        is_first
    }

    fn work_of(&self, program: &str) -> u32 {
        let known = self.known.borrow();
        let known = known.iter().find(|(name, _)| name == program);
        known.map_or(MOST, |(_, work)| *work)
    }

    /// A command of `program` has used so much of a processor: the next one will use about as much.
    pub fn learn(&self, program: &str, used: Duration) {
        self.last.set(Some(Instant::now()));
        let used = u32::try_from(used.as_micros()).unwrap_or(MOST);
        let used = used.clamp(LEAST, MOST);
        let mut known = self.known.borrow_mut();
        if let Some((_, work)) = known.iter_mut().find(|(name, _)| name == program) {
            *work = (3 * *work + used) / 4;
        } else if known.len() < PROGRAMS {
            known.push((program.to_owned(), used));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// How many commands of `program` may run at once.
    fn at_once(turns: &Turns, program: &str) -> usize {
        let mut running = Vec::new();
        loop {
            let mut next = pin!(turns.next(program));
            match next.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(turn) => running.push(turn.unwrap()),
                Poll::Pending => return running.len(),
            }
        }
    }

    #[test]
    fn of_a_program_that_does_little_more_run_at_once() {
        let turns = Turns::new(2);
        assert_eq!(at_once(&turns, "unknown"), 4);
        turns.learn("runc", Duration::from_millis(14));
        turns.learn("crun", Duration::from_millis(3));
        turns.learn("slow", Duration::from_secs(1 << 40));
        turns.learn("quick", Duration::ZERO);
        let of = ["runc", "crun", "slow", "quick"].map(|program| at_once(&turns, program));
        assert_eq!(of, [4, 20, 4, 60]);
    }

    #[test]
    fn of_those_that_come_at_once_one_is_the_first() {
        let turns = Turns::new(1);
        assert!(turns.is_first() && !turns.is_first());
        turns.last.set(Instant::now().checked_sub(2 * MOMENT));
        assert!(turns.is_first());
        turns.last.set(None);
        turns.learn("a", Duration::ZERO);
        assert!(!turns.is_first());
    }

    #[test]
    fn a_program_that_does_more_than_it_did_is_known_for_that() {
        let turns = Turns::new(1);
        turns.learn("a", Duration::from_millis(1));
        for _ in 0..20 {
            turns.learn("a", Duration::from_millis(15));
        }
        assert_eq!(at_once(&turns, "a"), 2);
        for n in 0..2 * PROGRAMS {
            turns.learn(&n.to_string(), Duration::from_millis(1));
        }
        assert_eq!(turns.known.borrow().len(), PROGRAMS);
        assert_eq!(at_once(&turns, "31"), 2, "nobody knows it");
    }
}
