// SPDX-License-Identifier: Apache-2.0
//! The guest's word: what of it is believed, and what ends a VM whose guest breaks it.

use protos::Timestamp;
use protos::task::DeleteResponse;
use std::rc::Rc;
use std::time::Instant;
use task::process::Exit;
use tokio::sync::watch;

/// The most of a guest's words that a line of the log or the reason of an end has, in bytes.
const LINE: usize = 200;
/// The most of them that an error has, in bytes.
const TEXT: usize = 4 << 10;
/// What exit(2) can say, and with it 128 and a signal.
const STATUSES: u32 = 255;
/// Seconds: from 1970 to the end of the year 9999, where protobuf's timestamps end.
const TIMES: std::ops::Range<i64> = 0..253_402_300_800;
const NANOS: std::ops::Range<i32> = 0..1_000_000_000;

/// Why a VM is to be killed; the first who says so is heard. Clones are the same VM's.
#[derive(Clone)]
pub struct Doom(Rc<watch::Sender<Option<String>>>);

impl Default for Doom {
    fn default() -> Self {
        Self(Rc::new(watch::channel(None).0))
    }
}

impl Doom {
    /// The guest did what no agent of ours does: nothing that it says from now on can be trusted.
    pub fn broke_word(&self, how: &str) {
        self.end(format!("the guest broke its word: {}", line(how)));
    }

    /// The VM is to be killed.
    pub fn end(&self, why: String) {
        self.0.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(why);
            is_first
        });
    }

    pub fn is_sealed(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until the VM is to be killed, and tells why.
    pub async fn sealed(&self) -> String {
        let mut told = self.0.subscribe();
        let why = told.wait_for(Option::is_some).await;
        // Who sends is there for as long as this is.
        why.ok().and_then(|why| why.clone()).unwrap_or_default()
    }
}

/// A text of the guest's on one line: cut, and without what a terminal obeys.
pub fn line(text: &str) -> String {
    plain(text, LINE, &[])
}

/// The same of one that may have several lines.
pub fn text(text: &str) -> String {
    plain(text, TEXT, &['\n', '\t'])
}

fn plain(text: &str, most: usize, kept: &[char]) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        if plain.len() >= most {
            plain.push('…');
            break;
        }
        if kept.contains(&c) || matches!(c, '\'' | '"' | '\\') {
            plain.push(c);
        } else {
            plain.extend(c.escape_debug());
        }
    }
    plain
}

/// An exit, as the guest tells it.
///
/// # Errors
/// If no process ends so, or then.
pub fn exit(status: u32, at: Option<Timestamp>) -> Result<Exit, String> {
    match at {
        _ if status > STATUSES => Err(format!("an exit status {status}")),
        Some(at) if is_time(at) => Ok(Exit { status, at }),
        at => Err(format!("an exit at {at:?}")),
    }
}

/// Whether this says that the process has ended.
pub fn tells_exit(answer: &DeleteResponse) -> bool {
    answer.exited_at.is_some_and(|at| at != Exit::NONE.at)
}

fn is_time(at: Timestamp) -> bool {
    TIMES.contains(&at.seconds) && NANOS.contains(&at.nanos)
}

/// How often something may happen: so often at once, and so often a second after that.
pub struct Allowance {
    most: f64,
    a_second: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    pub fn new(most: u32, a_second: u32) -> Self {
        Self {
            most: most.into(),
            a_second: a_second.into(),
            left: most.into(),
            at: Instant::now(),
        }
    }

    /// Whether it may happen once more, now.
    pub fn take(&mut self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        self.left = self
            .most
            .min(self.left + passed.as_secs_f64() * self.a_second);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn the_first_reason_is_the_one() {
        let doom = Doom::default();
        assert!(!doom.is_sealed());
        doom.broke_word("an answer\n\x1b[2J of 5 bytes");
        doom.end("later".into());
        let expected = "the guest broke its word: an answer\\n\\u{1b}[2J of 5 bytes";
        assert_eq!(doom.sealed().await, expected);
    }

    #[test]
    fn a_guests_text_is_cut_and_harmless() {
        assert_eq!(line("it's \"so\" \\ and ä"), "it's \"so\" \\ and ä");
        assert_eq!(line("\u{202e}\0\r\n"), "\\u{202e}\\0\\r\\n");
        assert_eq!(text("a\n\tb\x07"), "a\n\tb\\u{7}");
        let long = "\x1b".repeat(1 << 20);
        assert!(line(&long).len() < LINE + 10 && text(&long).len() < TEXT + 10);
    }

    #[test]
    fn an_exit_has_a_status_and_a_time_of_this_world() {
        let at = |seconds, nanos| Some(Timestamp { seconds, nanos });
        assert!(exit(255, at(1_800_000_000, 999_999_999)).is_ok());
        for (status, at) in [
            (256, at(1_800_000_000, 0)),
            (1 << 31, at(1_800_000_000, 0)),
            (0, None),
            (0, Some(Exit::NONE.at)),
            (0, at(31_556_889_864_403_199, 0)),
            (0, at(i64::MIN, 0)),
            (0, at(253_402_300_800, 0)),
            (0, at(1_800_000_000, -1)),
            (0, at(1_800_000_000, 1_000_000_000)),
        ] {
            assert!(exit(status, at).is_err(), "{status} {at:?}");
        }
    }

    #[test]
    fn an_allowance_comes_back_with_time() {
        let mut allowance = Allowance::new(3, 2);
        let start = allowance.at;
        let taken = |allowance: &mut Allowance, seconds| {
            let now = start + Duration::from_secs(seconds);
            (0..10).filter(|_| allowance.take_at(now)).count()
        };
        assert_eq!(taken(&mut allowance, 0), 3);
        assert_eq!(taken(&mut allowance, 1), 2);
        assert_eq!(taken(&mut allowance, 101), 3, "no more than at once");
    }
}
