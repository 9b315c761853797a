// SPDX-License-Identifier: Apache-2.0
//! Programs for seccomp(2): which system calls a process may make, and what befalls one that makes
//! another.

use libc::sock_filter;

/// linux/audit.h: the machine, with 64 bits and the least significant byte first.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
/// Marks the system calls of x32, of which none is ours.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`; of an argument, its lower half.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// The namespaces that clone(2) could make.
const NAMESPACES: u32 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP)
    .cast_unsigned();

/// What befalls a process that makes a system call which the program does not allow.
#[derive(Clone, Copy)]
pub enum Otherwise {
    /// It ends, all of it.
    Kill,
    /// It is answered ENOSYS, as if the kernel did not have the system call.
    Refuse,
}

impl Otherwise {
    fn answer(self) -> sock_filter {
        give(match self {
            Self::Kill => libc::SECCOMP_RET_KILL_PROCESS,
            Self::Refuse => MISSING,
        })
    }
}

/// What is asked of one argument: its number, and its value's lower 32 bits.
#[derive(Clone, Copy)]
pub enum When<'a> {
    /// All 64 bits are 0.
    Null(u32),
    OneOf(u32, &'a [u32]),
    /// It has at least one of these bits.
    Has(u32, u32),
    HasNone(u32, u32),
}

/// A program that grows. System calls of another machine end the process in any case.
pub struct Program {
    instructions: Vec<sock_filter>,
    otherwise: Otherwise,
}

impl Program {
    pub fn new(otherwise: Otherwise) -> Self {
        let kill = Otherwise::Kill.answer();
        let instructions = vec![
            code(LOAD, 0, 0, ARCHITECTURE),
            code(EQUAL, 1, 0, ARCH),
            kill,
            code(LOAD, 0, 0, NUMBER),
            code(AT_LEAST, 0, 1, X32),
            kill,
        ];
        Self {
            instructions,
            otherwise,
        }
    }

    /// These may be made.
    pub fn allow(mut self, numbers: &[libc::c_long]) -> Self {
        for &number in numbers {
            self.answer(number, vec![give(libc::SECCOMP_RET_ALLOW)]);
        }
        self
    }

    /// This may be made with arguments of which all of `when` is true.
    pub fn allow_when(mut self, number: libc::c_long, when: &[When]) -> Self {
        let mut block = Vec::new();
        for one in when {
            let (argument, mut tests) = match *one {
                When::Null(argument) => {
                    let upper = code(LOAD, 0, 0, ARGUMENTS + 8 * argument + 4);
                    let tests = vec![code(EQUAL, 0, 2, 0), upper, code(EQUAL, 1, 0, 0)];
                    (argument, tests)
                }
                When::OneOf(argument, values) => {
                    let left = (0..values.len()).rev();
                    let test = |(&value, left)| code(EQUAL, left + 1, 0, value);
                    (argument, values.iter().zip(left).map(test).collect())
                }
                When::Has(argument, bits) => (argument, vec![code(ANY_BIT, 1, 0, bits)]),
                When::HasNone(argument, bits) => (argument, vec![code(ANY_BIT, 0, 1, bits)]),
            };
            block.push(code(LOAD, 0, 0, ARGUMENTS + 8 * argument));
            block.append(&mut tests);
            block.push(self.otherwise.answer());
        }
        block.push(give(libc::SECCOMP_RET_ALLOW));
        self.answer(number, block);
        self
    }

    /// Threads may be made, in the namespaces that the process is in. The flags of clone3(2) can't be
    /// seen from here: who finds that there is none takes clone(2).
    pub fn allow_threads(self) -> Self {
        let thread = libc::CLONE_THREAD.cast_unsigned();
        let when = [When::Has(0, thread), When::HasNone(0, NAMESPACES)];
        self.allow_when(libc::SYS_clone, &when)
            .unknown(libc::SYS_clone3)
    }

    /// This is as if the kernel did not have it.
    pub fn unknown(mut self, number: libc::c_long) -> Self {
        self.answer(number, vec![give(MISSING)]);
        self
    }

    /// The instructions of all that.
    pub fn end(mut self) -> Vec<sock_filter> {
        self.instructions.push(self.otherwise.answer());
        self.instructions
    }

    /// For the system call `number`, this block, which ends in answers.
    fn answer(&mut self, number: libc::c_long, block: Vec<sock_filter>) {
        let compare = code(EQUAL, 0, block.len(), number as u32);
        self.instructions.push(compare);
        self.instructions.extend(block);
    }
}

/// One instruction; `yes` and `no` are how many to skip then.
fn code(code: u32, yes: usize, no: usize, k: u32) -> sock_filter {
    // No block has so many that a jump in it is longer.
    let [yes, no] = [yes, no].map(|skip| u8::try_from(skip).unwrap_or(u8::MAX));
    let code = code as u16;
    sock_filter {
        code,
        jt: yes,
        jf: no,
        k,
    }
}

fn give(answer: u32) -> sock_filter {
    code(RETURN, 0, 0, answer)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    pub const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    pub const REFUSE: u32 = MISSING;

    /// What `program` answers to a system call of this machine.
    pub fn answer(program: &[sock_filter], number: libc::c_long, arguments: [u64; 3]) -> u32 {
        run(program, ARCH, number as u32, arguments)
    }

    /// What `program` answers, as the kernel would run it.
    pub fn run(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 3]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let now = program[at];
            let jump = |yes: bool| usize::from(if yes { now.jt } else { now.jf });
            at += 1 + match u32::from(now.code) {
                LOAD => {
                    value = match now.k {
                        NUMBER => number,
                        ARCHITECTURE => arch,
                        k => {
                            let argument = arguments[((k - ARGUMENTS) / 8) as usize];
                            (argument >> (8 * ((k - ARGUMENTS) % 8))) as u32
                        }
                    };
                    0
                }
                EQUAL => jump(value == now.k),
                AT_LEAST => jump(value >= now.k),
                ANY_BIT => jump(value & now.k != 0),
                RETURN => return now.k,
                other => panic!("{other}"),
            };
        }
    }

    #[test]
    fn what_is_not_allowed_ends_the_process() {
        let when = [
            When::OneOf(0, &[4, 5, 6]),
            When::Has(1, 0b110),
            When::HasNone(2, 0b1),
        ];
        let program = Program::new(Otherwise::Kill);
        let program = program.allow(&[1, 2]).allow_when(7, &when).unknown(9).end();
        let of = |number, arguments| run(&program, ARCH, number, arguments);
        for (number, arguments, answer) in [
            (1, [0, 0, 0], ALLOW),
            (2, [9, 9, 9], ALLOW),
            (3, [0, 0, 0], KILL),
            (7, [4, 2, 0], ALLOW),
            (7, [5, 4, 2], ALLOW),
            (7, [6, 7, 4], ALLOW),
            (7, [3, 7, 4], KILL),
            (7, [7, 7, 4], KILL),
            (7, [6, 1, 4], KILL),
            (7, [6, 6, 1], KILL),
            (1 | X32, [0, 0, 0], KILL),
        ] {
            assert_eq!(of(number, arguments), answer, "{number} {arguments:?}");
        }
        assert_eq!(of(9, [0, 0, 0]), REFUSE);
        assert_eq!(
            run(&program, ARCH ^ 1, 1, [0, 0, 0]),
            KILL,
            "another machine"
        );
    }
}
