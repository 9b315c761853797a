// SPDX-License-Identifier: Apache-2.0
//! The stdin of `start`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| shim::fuzz::params(input));
