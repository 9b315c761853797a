// SPDX-License-Identifier: Apache-2.0
//! With the feature `generate`, makes `generated/` out of `proto/cri`. As in `protos/build.rs`, what
//! it makes is in the tree.

#[cfg(feature = "generate")]
fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["cri/api.proto"], ["proto"]).map_err(std::io::Error::other)?;
    tonic_prost_build::configure()
        .build_server(false)
        .disable_comments(["."])
        .out_dir("generated")
        .compile_fds(files)
}

#[cfg(not(feature = "generate"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
