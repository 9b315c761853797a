// SPDX-License-Identifier: Apache-2.0
//! How much of something a process writes on behalf of others: so many bytes at once, so many a
//! second.

use std::time::Instant;

/// What may be written at once after a quiet time, and from then on each second, in bytes.
const BURST: f64 = 256.0 * 1024.0;
const A_SECOND: f64 = 16.0 * 1024.0;

/// What the note about lines that are missing may take, in bytes.
const NOTE: usize = 256;

pub struct Quota {
    left: f64,
    at: Option<Instant>,
    missed: u64,
}

impl Quota {
    pub const fn new() -> Self {
        Self {
            left: BURST,
            at: None,
            missed: 0,
        }
    }

    /// Asks whether a line of so many bytes may be written `now`. If it may, this tells how many
    /// lines before it might not, and there is room for a note about them; if not, it is counted as
    /// one of those.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Option<u64> {
        let since = self.at.replace(now);
        let passed = since.map_or(0.0, |since| (now - since).as_secs_f64());
        self.left = (self.left + passed * A_SECOND).min(BURST);
        let note = if self.missed > 0 { NOTE } else { 0 };
        let bytes = (bytes + note) as f64;
        if bytes > self.left {
            self.missed += 1;
            return None;
        }
        self.left -= bytes;
        Some(std::mem::take(&mut self.missed))
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_gets_its_burst_and_then_so_much_a_second() {
        let mut quota = Quota::new();
        let begin = Instant::now();
        let fits =
            |quota: &mut Quota, now| (0..10_000).filter_map(|_| quota.take(1024, now)).count();
        assert_eq!(fits(&mut quota, begin), 256);
        assert_eq!(fits(&mut quota, begin), 0);
        let later = begin + Duration::from_secs(2);
        assert_eq!(quota.take(1024, later), Some(9_744 + 10_000));
        assert_eq!(fits(&mut quota, later), 30);
        assert_eq!(fits(&mut quota, later + Duration::from_secs(3600)), 255);
    }

    /// A short line fits where a long one did not.
    #[test]
    fn the_notes_about_missing_lines_are_counted() {
        let mut quota = Quota::new();
        let now = Instant::now();
        let mut written = 0;
        for n in 0..10_000 {
            let line = if n % 2 == 0 { 300 } else { 20 };
            if let Some(missed) = quota.take(line, now) {
                written += line + if missed > 0 { NOTE } else { 0 };
            }
        }
        assert!(written <= 256 << 10, "{written}");
    }
}
