// SPDX-License-Identifier: Apache-2.0
//! The capabilities of the calling thread, by capget(2) and capset(2): what virtiofsd asks of the
//! crate `capng`, under the same names.
//!
//! The crate of that name calls libcap-ng, whose constructor crashes in a static program. As
//! there, changes gather in a thread's own draft until [`apply`].

#![allow(unsafe_code, reason = "capget(2) and capset(2) have no safe wrapper")]

use bitflags::bitflags;
use std::cell::Cell;
use std::fmt;

pub type Capability = u32;
pub type Result<T> = std::result::Result<T, Error>;

/// capget(2): version 3, two words of 32 capabilities.
const VERSION: u32 = 0x2008_0522;

/// From linux/capability.h, in order, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[derive(Debug)]
pub enum Error {
    GetProcessCapabilities,
    ApplyCapabilities,
    GetCapabilityId(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GetProcessCapabilities => f.write_str("failed to get process capabilities"),
            Self::ApplyCapabilities => f.write_str("failed to apply capabilities"),
            Self::GetCapabilityId(name) => write!(f, "no capability is called {name}"),
        }
    }
}

impl std::error::Error for Error {}

bitflags! {
    pub struct Type: u32 {
        const EFFECTIVE = 1;
        const PERMITTED = 2;
        const INHERITABLE = 4;
    }
}

bitflags! {
    pub struct Set: u32 {
        const CAPS = 16;
        const BOUNDS = 32;
        const BOTH = Self::CAPS.bits | Self::BOUNDS.bits;
    }
}

#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Action {
    DROP,
    ADD,
}

pub struct CUpdate {
    pub action: Action,
    pub cap_type: Type,
    pub capability: Capability,
}

/// One bit for each capability.
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u64,
    permitted: u64,
    inheritable: u64,
}

thread_local! {
    static DRAFT: Cell<Option<Sets>> = const { Cell::new(None) };
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// The draft, which starts as what the kernel says.
fn draft() -> Result<Sets> {
    match DRAFT.get() {
        Some(sets) => Ok(sets),
        None => {
            get_caps_process()?;
            DRAFT.get().ok_or(Error::GetProcessCapabilities)
        }
    }
}

/// Makes the draft what the kernel says of this thread.
///
/// # Errors
/// From capget(2).
pub fn get_caps_process() -> Result<()> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut words = [[0_u32; 3]; 2];
    // SAFETY: version 3 writes two times three words; both arguments outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) };
    if done != 0 {
        return Err(Error::GetProcessCapabilities);
    }
    let set = |i: usize| u64::from(words[0][i]) | u64::from(words[1][i]) << 32;
    DRAFT.set(Some(Sets {
        effective: set(0),
        permitted: set(1),
        inheritable: set(2),
    }));
    Ok(())
}

/// Empties the draft; the bounding set is not ours to change.
pub fn clear(set: Set) {
    if set.contains(Set::CAPS) {
        DRAFT.set(Some(Sets::default()));
    }
}

/// Changes the draft.
///
/// # Errors
/// From capget(2).
pub fn update(updates: Vec<CUpdate>) -> Result<()> {
    let mut sets = draft()?;
    for update in updates {
        let bit = 1_u64 << (update.capability & 63);
        let change = |set: &mut u64, kind: Type| {
            if update.cap_type.contains(kind) {
                match update.action {
                    Action::ADD => *set |= bit,
                    Action::DROP => *set &= !bit,
                }
            }
        };
        change(&mut sets.effective, Type::EFFECTIVE);
        change(&mut sets.permitted, Type::PERMITTED);
        change(&mut sets.inheritable, Type::INHERITABLE);
    }
    DRAFT.set(Some(sets));
    Ok(())
}

/// Makes the draft true, for this thread.
///
/// # Errors
/// From capset(2).
pub fn apply(set: Set) -> Result<()> {
    if !set.contains(Set::CAPS) {
        return Ok(());
    }
    let sets = draft()?;
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let word = |set: u64, high: u32| (set >> (32 * high)) as u32;
    let words = [0, 1].map(|high| {
        [
            word(sets.effective, high),
            word(sets.permitted, high),
            word(sets.inheritable, high),
        ]
    });
    // SAFETY: version 3 reads two times three words; both arguments outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) };
    if done == 0 {
        Ok(())
    } else {
        Err(Error::ApplyCapabilities)
    }
}

/// Whether the draft has `capability` in the set `which`.
pub fn have_capability(which: Type, capability: Capability) -> bool {
    let bit = 1_u64 << (capability & 63);
    draft().is_ok_and(|sets| {
        let set = match which {
            Type::EFFECTIVE => sets.effective,
            Type::PERMITTED => sets.permitted,
            _ => sets.inheritable,
        };
        set & bit != 0
    })
}

/// # Errors
/// If no capability has that name.
pub fn name_to_capability(name: &str) -> Result<Capability> {
    let unknown = || Error::GetCapabilityId(name.to_owned());
    let name = name.to_uppercase();
    let found = NAMES.iter().position(|known| *known == name);
    found.map(|n| n as Capability).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// virtiofsd drops FSETID for the length of a write, and takes it back (its credentials.rs).
    #[test]
    fn a_capability_is_dropped_for_one_thread_and_comes_back() {
        let fsetid = name_to_capability("fsetid").unwrap();
        assert_eq!(fsetid, 4);
        get_caps_process().unwrap();
        if !have_capability(Type::EFFECTIVE, fsetid) {
            return; // only root has it
        }
        let change = |action| {
            let capability = fsetid;
            let cap_type = Type::EFFECTIVE;
            let update = CUpdate {
                action,
                cap_type,
                capability,
            };
            super::update(vec![update]).unwrap();
            apply(Set::CAPS).unwrap();
            get_caps_process().unwrap();
            have_capability(Type::EFFECTIVE, fsetid)
        };
        assert!(!change(Action::DROP));
        let elsewhere = std::thread::scope(|scope| {
            let fresh =
                || name_to_capability("FSETID").map(|id| have_capability(Type::PERMITTED, id));
            scope.spawn(fresh).join().unwrap().unwrap()
        });
        assert!(elsewhere);
        assert!(change(Action::ADD));
        assert!(name_to_capability("NOPE").is_err());
    }
}
