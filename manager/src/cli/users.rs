// SPDX-License-Identifier: Apache-2.0
//! Users and groups by their names: as the root filesystem of a container has them.

use nix::fcntl::{OFlag, ResolveFlag, open};
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use task::below::open_below;

/// Bytes of a file of users that are read, at most.
const MOST: u64 = 4 << 20;

/// What /etc/passwd and /etc/group say.
#[derive(Clone, Debug, Default)]
pub struct Users {
    users: Vec<(String, u32, u32)>,
    /// And who else is in the group.
    groups: Vec<(String, u32, Vec<String>)>,
}

/// A user as the command line has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A GID that was not given is the UID.
    Ids(u32, u32),
    /// There is a name in it.
    Names(String),
}

/// Who a process is.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub others: Vec<u32>,
}

impl User {
    /// As the `user` of a process.
    pub fn spec(&self) -> Value {
        match self.others.is_empty() {
            true => json!({"uid": self.uid, "gid": self.gid}),
            false => json!({"uid": self.uid, "gid": self.gid, "additionalGids": self.others}),
        }
    }
}

/// Reads USER[:GROUP], each a name or a number.
///
/// # Errors
/// A text, if it is neither.
pub fn asked(text: &str) -> Result<Asked, String> {
    let bad = || "not USER[:GROUP], each a name or a number".to_owned();
    let parts: Vec<&str> = text.split(':').collect();
    let (user, group) = match parts[..] {
        [user] => (user, user),
        [user, group] => (user, group),
        _ => return Err(bad()),
    };
    let is_name = |text: &str| {
        let begins = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
        begins && !text.contains(|c: char| c.is_control() || c.is_whitespace())
    };
    match (number(user), number(group)) {
        (Some(uid), Some(gid)) => Ok(Asked::Ids(uid, gid)),
        (uid, gid) if (uid.is_some() || is_name(user)) && (gid.is_some() || is_name(group)) => {
            Ok(Asked::Names(text.to_owned()))
        }
        _ => Err(bad()),
    }
}

/// The highest says "none" to the kernel.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&id| id != u32::MAX)
}

impl Users {
    /// What the texts of both files say; lines that say nothing are passed over.
    pub fn of(passwd: &str, group: &str) -> Self {
        let user = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let ids = number(fields.get(2)?).zip(number(fields.get(3)?))?;
            Some((fields[0].to_owned(), ids.0, ids.1))
        };
        let group_of = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let members = fields.get(3).unwrap_or(&"").split(',');
            let members = members.map(|name| name.trim().to_owned()).collect();
            Some((fields[0].to_owned(), number(fields.get(2)?)?, members))
        };
        Self {
            users: passwd.lines().filter_map(user).collect(),
            groups: group.lines().filter_map(group_of).collect(),
        }
    }

    /// Those of the root filesystem at `root`; none of what is not there, and no link in it leads out.
    pub fn below(root: &Path) -> Self {
        let read = |name: &str| {
            let dir = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let root = open(root, dir, Mode::empty()).ok()?;
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            let file = open_below(&root, name, flags, ResolveFlag::RESOLVE_IN_ROOT).ok()?;
            let file = File::from(file);
            let mut text = Vec::new();
            let is_file = file.metadata().ok()?.is_file();
            is_file
                .then(|| file.take(MOST).read_to_end(&mut text))?
                .ok()?;
            Some(String::from_utf8_lossy(&text).into_owned())
        };
        let text = |name| read(name).unwrap_or_default();
        Self::of(&text("etc/passwd"), &text("etc/group"))
    }

    /// Who an image's `User` is: a number without a group has that of its line, or 0.
    ///
    /// # Errors
    /// A text that names who is not there.
    pub fn of_image(&self, text: &str) -> Result<User, String> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let known = self.user(user);
        let uid = match (&known, number(user)) {
            (_, Some(uid)) => uid,
            (Some((_, uid, _)), None) => *uid,
            (None, None) => return Err(format!("user {user:?} is not in its /etc/passwd")),
        };
        let gid = match (group, number(group)) {
            ("", _) => known.map_or(0, |(_, _, gid)| *gid),
            (_, Some(gid)) => gid,
            (name, None) => self.group(name)?,
        };
        // Who chose a group has no others (moby's and containerd's way).
        let others = match (known, group) {
            (Some((name, ..)), "") => self.groups_of(name, gid),
            _ => Vec::new(),
        };
        Ok(User { uid, gid, others })
    }

    /// Who the command line's is.
    ///
    /// # Errors
    /// A text that names who is not there.
    pub fn find(&self, asked: &Asked) -> Result<User, String> {
        match asked {
            Asked::Ids(uid, gid) => Ok(User {
                uid: *uid,
                gid: *gid,
                others: Vec::new(),
            }),
            Asked::Names(text) => self.of_image(text),
        }
    }

    fn user(&self, name: &str) -> Option<&(String, u32, u32)> {
        let uid = number(name);
        let mut all = self.users.iter();
        all.find(|(known, known_uid, _)| known == name || Some(*known_uid) == uid)
    }

    fn group(&self, name: &str) -> Result<u32, String> {
        let found = self.groups.iter().find(|(known, ..)| known == name);
        let found = found.map(|(_, gid, _)| *gid);
        found.ok_or_else(|| format!("group {name:?} is not in its /etc/group"))
    }

    fn groups_of(&self, user: &str, gid: u32) -> Vec<u32> {
        let is_in = |members: &[String]| members.iter().any(|member| member == user);
        let groups = self.groups.iter();
        let groups = groups.filter(|(_, of, members)| *of != gid && is_in(members));
        groups.map(|(_, gid, _)| *gid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_numbers_need_no_line() {
        let passwd = "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\nbroken\nx:x:y:z\n";
        let users = Users::of(passwd, "root:x:0:\nlog:x:7:other, web\nweb:x:34:web\nbad\n");
        let user = |uid, gid, others: &[u32]| User {
            uid,
            gid,
            others: others.to_vec(),
        };
        for (text, expected) in [
            ("web", user(33, 34, &[7])),
            ("33", user(33, 34, &[7])),
            ("web:log", user(33, 7, &[])),
            ("web:5", user(33, 5, &[])),
            ("1000", user(1000, 0, &[])),
            ("1000:log", user(1000, 7, &[])),
        ] {
            assert_eq!(users.of_image(text), Ok(expected), "{text}");
        }
        for text in ["nobody", "web:nobody", "broken", "x"] {
            assert!(users.of_image(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_neither_a_name_nor_a_number_is_refused() {
        assert_eq!(asked("5"), Ok(Asked::Ids(5, 5)));
        assert_eq!(asked("5:6"), Ok(Asked::Ids(5, 6)));
        assert_eq!(asked("web"), Ok(Asked::Names("web".into())));
        for text in ["", "5:", ":5", "-1", "4294967295", "1:2:3", "a b", "5x"] {
            assert!(asked(text).is_err(), "{text}");
        }
    }
}
