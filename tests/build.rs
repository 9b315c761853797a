//! Compiles `proto/cri` to Rust, in pure Rust: no protoc is needed.

use std::io::Result;

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["cri/api.proto"], ["proto"]).map_err(std::io::Error::other)?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)
}
