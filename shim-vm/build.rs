// SPDX-License-Identifier: Apache-2.0
//! Tells the shim which agent goes with it.

mod fingerprint;

fn main() -> std::io::Result<()> {
    fingerprint::tell()
}
