// SPDX-License-Identifier: Apache-2.0
//! Bytes on a ttrpc connection, as frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| protos::ttrpc::fuzz::frame(input));
