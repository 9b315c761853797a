//! Tells the shim which agent goes with it.

mod fingerprint;

fn main() -> std::io::Result<()> {
    fingerprint::tell()
}
