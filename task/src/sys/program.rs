//! How much of its own program a process holds in memory.
#![allow(
    unsafe_code,
    reason = "dl_iterate_phdr(3) and madvise(2) have no safe form"
)]

use std::ffi::{c_int, c_void};

/// Lets go of the pages of the program's code and constants that were needed so far, as those of its
/// start. What is needed again comes out of the page cache. For a process that waits for long after it
/// has begun, and of which there are many.
pub fn let_go() {
    // SAFETY: `visit` gets what the kernel mapped of this program, and nothing of it is kept.
    unsafe { libc::dl_iterate_phdr(Some(visit), std::ptr::null_mut()) };
}

/// The program itself comes first; libraries, if there are any, stay as they are.
unsafe extern "C" fn visit(
    program: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: it is valid for as long as this function runs, and so are its headers.
    let (base, headers) = unsafe {
        let program = &*program;
        let count = usize::from(program.dlpi_phnum);
        (
            program.dlpi_addr,
            std::slice::from_raw_parts(program.dlpi_phdr, count),
        )
    };
    for header in headers {
        // What may have been written to would be lost.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let page = 4096;
        let begin = (base + header.p_vaddr) & !(page - 1);
        let end = (base + header.p_vaddr + header.p_memsz).next_multiple_of(page);
        // SAFETY: a mapping of the program's file that nobody can write to: its pages are read again
        // from the file when they are needed.
        unsafe {
            let length = usize::try_from(end - begin).unwrap_or(0);
            libc::madvise(begin as *mut c_void, length, libc::MADV_DONTNEED);
        }
    }
    1
}
