// SPDX-License-Identifier: Apache-2.0
//! Has connections to localhost, whatever their port, go to sockets of ours, in one network namespace: a
//! program that the kernel runs where it looks for who listens (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9). No
//! packet is changed, and who accepts finds the port as that of its own end.
#![allow(
    unsafe_code,
    reason = "bpf(2), for which nix has no function; each call has its SAFETY comment"
)]

use nix::errno::Errno;
use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// linux/bpf.h.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const SK_LOOKUP: u32 = 36;
const PSEUDO_MAP_FD: u8 = 1;
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
/// What the program answers: look on, with the socket that was assigned, if one was.
const SK_PASS: i32 = 1;
/// Offsets in `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
/// Which of the sockets: IPv4's, IPv6's.
const SOCKETS: u32 = 2;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn one(code: u32, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code: code as u8,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// Loads 4 bytes of memory.
const fn load(to: u8, from: u8, offset: i16) -> Instruction {
    one(
        libc::BPF_LDX | libc::BPF_MEM | libc::BPF_W,
        to,
        from,
        offset,
        0,
    )
}

/// Stores a number of 4 bytes.
const fn store(to: u8, offset: i16, immediate: i32) -> Instruction {
    one(
        libc::BPF_ST | libc::BPF_MEM | libc::BPF_W,
        to,
        0,
        offset,
        immediate,
    )
}

const ALU64: u32 = 0x07;
const MOV: u32 = 0xb0;
const JUMP_UNEQUAL: u32 = libc::BPF_JMP | 0x50;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ;
const CALL: u32 = libc::BPF_JMP | 0x80;
const EXIT: u32 = libc::BPF_JMP | 0x90;

const fn copy(to: u8, from: u8) -> Instruction {
    one(ALU64 | MOV | libc::BPF_X, to, from, 0, 0)
}

const fn set(to: u8, immediate: i32) -> Instruction {
    one(ALU64 | MOV, to, 0, 0, immediate)
}

const fn call(function: i32) -> Instruction {
    one(CALL, 0, 0, 0, function)
}

/// The addresses, as the kernel has them: the bytes of the network in a number of this machine's.
const V4: i32 = i32::from_ne_bytes([127, 0, 0, 1]);
const V6: [i32; 4] = [0, 0, 0, i32::from_ne_bytes([0, 0, 0, 1])];

/// What is not for us goes to the last two instructions.
fn program(sockets: BorrowedFd<'_>) -> Vec<Instruction> {
    let mut code = vec![
        copy(6, 1),
        load(2, 6, PROTOCOL),
        one(JUMP_UNEQUAL, 2, 0, 0, libc::IPPROTO_TCP),
        load(2, 6, FAMILY),
        one(JUMP_EQUAL, 2, 0, 0, libc::AF_INET),
        one(JUMP_UNEQUAL, 2, 0, 0, libc::AF_INET6),
    ];
    let branch = 4;
    for (part, word) in (0..).zip(V6) {
        code.push(load(2, 6, LOCAL_IP6 + 4 * part));
        code.push(one(JUMP_UNEQUAL, 2, 0, 0, word));
    }
    code.push(store(10, -4, 1));
    // Over IPv4's part.
    code.push(one(libc::BPF_JMP, 0, 0, 3, 0));
    code[branch].offset = (code.len() - branch - 1) as i16;
    code.push(load(2, 6, LOCAL_IP4));
    code.push(one(JUMP_UNEQUAL, 2, 0, 0, V4));
    code.push(store(10, -4, 0));
    code.extend([
        // An instruction of two.
        one(
            libc::BPF_LD | 0x18,
            1,
            PSEUDO_MAP_FD,
            0,
            sockets.as_raw_fd(),
        ),
        one(0, 0, 0, 0, 0),
        copy(2, 10),
        one(ALU64, 2, 0, 0, -4),
        call(MAP_LOOKUP_ELEM),
        one(JUMP_EQUAL, 0, 0, 0, 0),
        copy(7, 0),
        copy(1, 6),
        copy(2, 7),
        set(3, 0),
        call(SK_ASSIGN),
        copy(1, 7),
        call(SK_RELEASE),
        set(0, SK_PASS),
        one(EXIT, 0, 0, 0, 0),
    ]);
    let end = code.len() - 2;
    for (at, instruction) in code.iter_mut().enumerate() {
        let jumps = [JUMP_UNEQUAL, JUMP_EQUAL].contains(&u32::from(instruction.code));
        if jumps && instruction.offset == 0 {
            instruction.offset = (end - at - 1) as i16;
        }
    }
    code
}

/// bpf(2): `attributes` are those of `command`, from the first on; the kernel takes the others for 0.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    let at = std::ptr::from_ref(attributes);
    // SAFETY: the kernel reads as many bytes as the struct has, and what its pointers lead to lives
    // until the call returns.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, at, size_of::<T>()) };
    Ok(Errno::result(done)? as i32)
}

/// The same, of a command that gives an fd.
fn bpf_fd<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    task::sys::adopt(bpf(command, attributes)?)
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C, align(8))]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C, align(8))]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 2],
    log_buffer: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    attach: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// In the network namespace that `netns` is: TCP to 127.0.0.1 goes to the first of `listeners`, that to
/// ::1 to the second, as long as what comes back is open, and they are.
///
/// # Errors
/// From bpf(2).
pub fn attach(netns: &OwnedFd, listeners: &[impl AsFd]) -> io::Result<OwnedFd> {
    let sockets = bpf_fd(
        MAP_CREATE,
        &MapCreate {
            kind: MAP_TYPE_SOCKMAP,
            key_size: 4,
            value_size: 8,
            max_entries: SOCKETS,
        },
    )?;
    for (key, listener) in (0..SOCKETS).zip(listeners) {
        let value = u64::from(number(&listener.as_fd()));
        let update = MapUpdate {
            map: number(&sockets),
            padding: 0,
            key: std::ptr::from_ref(&key) as u64,
            value: std::ptr::from_ref(&value) as u64,
            flags: 0,
        };
        bpf(MAP_UPDATE_ELEM, &update)?;
    }
    let instructions = program(sockets.as_fd());
    let load = ProgLoad {
        kind: PROG_TYPE_SK_LOOKUP,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log: [0; 2],
        log_buffer: 0,
        kernel: 0,
        flags: 0,
        name: *b"dunnage\0\0\0\0\0\0\0\0\0",
        device: 0,
        attach: SK_LOOKUP,
    };
    let program = bpf_fd(PROG_LOAD, &load)?;
    bpf_fd(
        LINK_CREATE,
        &LinkCreate {
            program: number(&program),
            target: number(netns),
            attach: SK_LOOKUP,
            flags: 0,
        },
    )
}
