// SPDX-License-Identifier: Apache-2.0
//! Which process of a container: its init, or an exec by its name.

use std::fmt;

/// In the engine and in bundles these are never mistaken for each other, whatever an exec is
/// called. Requests and events have one text for both. Init comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProcessId {
    Init,
    Exec(String),
}

impl ProcessId {
    /// The process that a request means: init without an exec's id.
    pub fn in_request(exec_id: &str) -> Self {
        match exec_id {
            "" => Self::Init,
            exec => Self::Exec(exec.to_owned()),
        }
    }

    /// The process that an event of `container`'s means: init has the container's id, or none.
    /// That is why no exec may have it.
    pub fn in_event(container: &str, id: &str) -> Self {
        match id {
            id if id == container => Self::Init,
            id => Self::in_request(id),
        }
    }

    /// What requests call it: nothing if it is init.
    pub fn exec_id(&self) -> &str {
        match self {
            Self::Init => "",
            Self::Exec(exec) => exec,
        }
    }

    /// What events call it, and answers to State: the container's id if it is init.
    pub fn name<'a>(&'a self, container: &'a str) -> &'a str {
        match self {
            Self::Init => container,
            Self::Exec(exec) => exec,
        }
    }
}

impl fmt::Display for ProcessId {
    /// For logs, after the container's id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Init => f.write_str("init"),
            Self::Exec(exec) => write!(f, "exec {exec}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_may_be_called_init_and_be_none() {
        let exec = ProcessId::in_event("c", "init");
        assert_eq!(exec, ProcessId::in_request("init"));
        assert_eq!((exec.exec_id(), exec.name("c")), ("init", "init"));
        for init in [ProcessId::in_event("c", "c"), ProcessId::in_event("c", "")] {
            assert_eq!(init, ProcessId::Init);
            assert_eq!((init.exec_id(), init.name("c")), ("", "c"));
        }
    }
}
