// SPDX-License-Identifier: Apache-2.0
//! Seeded inputs for tests that run fuzz targets without a fuzzer: random bytes, and valid inputs
//! with a few changes.

/// How many inputs a target gets in `cargo test`.
pub const INPUTS: u64 = 100_000;

/// xorshift64*: the same inputs on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        usize::try_from(number % n.max(1) as u64).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        // Some say more than others: ends of ranges, the grammar of JSON and of protobuf.
        const TELLING: &[u8] = b"\x00\x01\x7f\x80\xff\x08\x0a\x12{}[]\":,\\/.-0e9 ";
        match self.below(2) {
            0 => TELLING[self.below(TELLING.len())],
            _ => self.below(256) as u8,
        }
    }
}

/// Calls `target` with [`INPUTS`] inputs made of `seeds`.
#[allow(dead_code, reason = "a file of several crates")]
pub fn inputs(seeds: &[Vec<u8>], target: impl FnMut(&[u8])) {
    some_inputs(seeds, INPUTS, target);
}

/// Calls `target` with `count` inputs made of `seeds`.
pub fn some_inputs(seeds: &[Vec<u8>], count: u64, mut target: impl FnMut(&[u8])) {
    let mut random = Random(0x5eed_f00d);
    for seed in seeds {
        target(seed);
    }
    for _ in 0..count {
        let mut input = match random.below(8) {
            0 => (0..random.below(64)).map(|_| random.byte()).collect(),
            _ => seeds[random.below(seeds.len())].clone(),
        };
        for _ in 0..1 + random.below(4) {
            change(&mut input, &mut random, seeds);
        }
        target(&input);
    }
}

fn change(input: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    let at = random.below(input.len() + 1);
    match random.below(7) {
        0 => input.insert(at, random.byte()),
        1 => input.truncate(at),
        2 if at < input.len() => drop(input.remove(at)),
        3 if at < input.len() => input[at] ^= 1 << random.below(8),
        4 if at < input.len() => input[at] = random.byte(),
        // A part of another one, or of itself.
        5 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            let to = from + random.below(other.len() - from + 1);
            input.splice(at..at, other[from..to].iter().copied());
        }
        // The same again and again: nesting, long strings.
        _ => {
            let byte = random.byte();
            input.splice(at..at, std::iter::repeat_n(byte, random.below(300)));
        }
    }
}
