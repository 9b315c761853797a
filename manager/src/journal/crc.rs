// SPDX-License-Identifier: Apache-2.0
//! CRC-32C (Castagnoli), the checksum of a record.

const POLYNOMIAL: u32 = 0x82f6_3b78;

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
}
