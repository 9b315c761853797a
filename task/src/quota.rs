//! How much of something a process writes on behalf of others: so many bytes at once, so many a
//! second.

use std::time::Instant;

/// What may be written at once after a quiet time, and from then on each second, in bytes.
const BURST: f64 = 256.0 * 1024.0;
const A_SECOND: f64 = 16.0 * 1024.0;

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
    /// lines before it might not; if not, it is counted as one of those.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Option<u64> {
        let since = self.at.replace(now);
        let passed = since.map_or(0.0, |since| (now - since).as_secs_f64());
        self.left = (self.left + passed * A_SECOND).min(BURST);
        let bytes = bytes as f64;
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
        assert_eq!(fits(&mut quota, later), 31);
        assert_eq!(fits(&mut quota, later + Duration::from_secs(3600)), 256);
    }
}
