// SPDX-License-Identifier: Apache-2.0
//! The options of a Create.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| task::fuzz::options(input));
