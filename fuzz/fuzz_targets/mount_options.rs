// SPDX-License-Identifier: Apache-2.0
//! The options of mounts, one a line.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| task::fuzz::mount_options(input));
