//! `dunnage-guest`: the first process of a VM that runs containers.

fn main() {}
