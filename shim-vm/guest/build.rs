// SPDX-License-Identifier: Apache-2.0
//! Tells the agent which build of it this is.

#[path = "../fingerprint.rs"]
mod fingerprint;

fn main() -> std::io::Result<()> {
    fingerprint::tell()
}
