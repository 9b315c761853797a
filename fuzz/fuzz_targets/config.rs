// SPDX-License-Identifier: Apache-2.0
//! A config.json.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| task::fuzz::config(input));
