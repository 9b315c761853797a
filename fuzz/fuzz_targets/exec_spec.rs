// SPDX-License-Identifier: Apache-2.0
//! The process of an exec, as JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| task::fuzz::exec_spec(input));
