//! CRC-32C (Castagnoli), the checksum of a record, also of many overlapping stretches at once.

const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = times_x(crc);
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

const fn times_x(crc: u32) -> u32 {
    if crc & 1 == 1 {
        (crc >> 1) ^ POLYNOMIAL
    } else {
        crc >> 1
    }
}

/// The product of two polynomials, as CRCs hold them: the lowest power in the highest bit. Without
/// branches: nobody could foretell them.
fn times(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for _ in 0..u32::BITS {
        product ^= b & 0u32.wrapping_sub(a >> 31);
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
    }
    product
}

/// The state of a CRC after some bytes more.
fn update(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(test)]
    work::add(bytes.len());
    bytes.iter().fold(crc, |crc, &byte| {
        (crc >> 8) ^ TABLE[((crc ^ u32::from(byte)) & 0xff) as usize]
    })
}

pub fn crc32c(bytes: &[u8]) -> u32 {
    !update(!0, bytes)
}

/// The checksums of any stretches of `bytes`, each in the same short time however long it is.
///
/// A CRC is linear: the state after `a..b` follows from the states after `..a` and `..b`, which
/// are counted once, and from the power of x that b - a bytes multiply by.
pub struct Stretches<'a> {
    bytes: &'a [u8],
    /// The states, from 0 on, before every [`Stretches::STEP`]th byte.
    states: Vec<u32>,
    /// What so many bytes more multiply by.
    powers: Vec<u32>,
}

impl<'a> Stretches<'a> {
    /// Between two states that are kept.
    const STEP: usize = 8;

    /// For stretches of at most `longest` bytes.
    pub fn new(bytes: &'a [u8], longest: usize) -> Self {
        let mut states = vec![0];
        for chunk in bytes.chunks(Self::STEP) {
            states.extend(states.last().map(|&state| update(state, chunk)));
        }
        let next = |&power: &u32| Some(update(power, &[0]));
        let powers = std::iter::successors(Some(ONE), next);
        let powers = powers.take(longest.min(bytes.len()) + 1).collect();
        Self {
            bytes,
            states,
            powers,
        }
    }

    /// What [`crc32c`] says of `from..to`, which must be in the bytes and not too long.
    pub fn crc32c(&self, from: usize, to: usize) -> u32 {
        let power = self.powers[to - from];
        !(self.state(to) ^ times(self.state(from) ^ !0, power))
    }

    fn state(&self, at: usize) -> u32 {
        let kept = at / Self::STEP;
        update(self.states[kept], &self.bytes[kept * Self::STEP..at])
    }
}

/// How many bytes went through, so that a test can tell linear from quadratic.
#[cfg(test)]
pub mod work {
    use std::cell::Cell;

    thread_local!(static BYTES: Cell<usize> = const { Cell::new(0) });

    pub fn add(bytes: usize) {
        BYTES.set(BYTES.get() + bytes);
    }

    pub fn of(what: impl FnOnce()) -> usize {
        let before = BYTES.get();
        what();
        BYTES.get() - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn any_stretch_has_the_checksum_that_it_has_alone() {
        let bytes: Vec<u8> = (0..9000u32).map(|n| (n * n / 7) as u8).collect();
        let stretches = Stretches::new(&bytes, 9000);
        for from in [0, 1, 31, 32, 33, 100, 4095, 4096, 8999, 9000] {
            for to in (from..=9000).step_by(61).chain([9000]) {
                assert_eq!(
                    stretches.crc32c(from, to),
                    crc32c(&bytes[from..to]),
                    "{from}..{to}"
                );
            }
        }
    }
}
