//! `containerd-shim-vm-v2`: containers in a microVM.

fn main() {}
