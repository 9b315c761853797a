// SPDX-License-Identifier: Apache-2.0
//! Bytes on a connection to a ttrpc server.
#![no_main]

use std::cell::LazyCell;
use tokio::runtime::{Builder, LocalRuntime};

thread_local! {
    static RUNTIME: LazyCell<LocalRuntime> = LazyCell::new(|| {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default());
        runtime.expect("runtime")
    });
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    RUNTIME.with(|runtime| runtime.block_on(protos::ttrpc::fuzz::server(input)));
});
