// SPDX-License-Identifier: Apache-2.0
//! How much of its own program a process holds in memory.
#![allow(
    unsafe_code,
    reason = "dl_iterate_phdr(3) and madvise(2) have no safe form"
)]

use nix::poll::{PollFd, PollTimeout, poll};
use std::ffi::{c_int, c_void};

/// The parts of the program that nobody can write to: code and constants. There are two or three.
#[derive(Default)]
struct Parts {
    found: [(usize, usize); 4],
    count: usize,
}

/// Waits as poll(2) does, for as long as it takes, and holds no more of the program meanwhile than that
/// needs. What is needed again comes out of the page cache. For a process that waits for long, and of
/// which there are many.
///
/// # Errors
/// From poll(2).
pub fn wait_long(fds: &mut [PollFd<'_>]) -> nix::Result<c_int> {
    let mut parts = Parts::default();
    // SAFETY: `visit` gets what the kernel mapped of this program, and writes to `parts` alone.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut parts).cast()) };
    for &(begin, length) in &parts.found[..parts.count] {
        // SAFETY: a mapping of the program's file that nobody can write to: its pages are read again
        // from the file when they are needed.
        unsafe { libc::madvise(begin as *mut c_void, length, libc::MADV_DONTNEED) };
    }
    poll(fds, PollTimeout::NONE)
}

/// The program itself comes first; libraries, if there are any, stay as they are.
unsafe extern "C" fn visit(
    program: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    parts: *mut c_void,
) -> c_int {
    const PAGE: u64 = 4096;
    // SAFETY: the program and its headers are valid for as long as this function runs, and `parts` is
    // what `wait_long` gave.
    let (base, headers, parts) = unsafe {
        let program = &*program;
        let count = usize::from(program.dlpi_phnum);
        let headers = std::slice::from_raw_parts(program.dlpi_phdr, count);
        (program.dlpi_addr, headers, &mut *parts.cast::<Parts>())
    };
    // What may have been written to would be lost.
    let loaded = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for (part, header) in parts.found.iter_mut().zip(loaded) {
        let begin = (base + header.p_vaddr) & !(PAGE - 1);
        let end = (base + header.p_vaddr + header.p_memsz).next_multiple_of(PAGE);
        *part = (begin as usize, (end - begin) as usize);
        parts.count += 1;
    }
    1
}
