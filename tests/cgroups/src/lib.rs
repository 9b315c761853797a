// SPDX-License-Identifier: Apache-2.0
//! The names that `containerd-shim` takes from the crate `cgroups-rs`, as they are on a machine that
//! has no cgroups.
//!
//! The shim of `tests/stranger` asks for no cgroup, but `containerd-shim` cannot be compiled without
//! that crate, which brings a client of D-Bus: 35 crates, and two fifths of the time to build them all.

/// A process, which no group here can take.
pub struct CgroupPid;

impl From<u64> for CgroupPid {
    fn from(_: u64) -> Self {
        Self
    }
}

pub mod fs {
    //! The file system of cgroups.

    use std::convert::Infallible;
    use std::path::Path;

    pub use cgroup::Cgroup;
    pub use pid::PidController;

    pub mod error {
        //! The one error there is.

        pub type Result<T> = std::result::Result<T, Error>;

        #[derive(Debug)]
        pub struct Error;

        impl std::fmt::Display for Error {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("this machine has no cgroups")
            }
        }

        impl std::error::Error for Error {}
    }

    pub mod hierarchies {
        //! How cgroups are mounted.

        /// Not as version 2 has it.
        pub fn auto() -> Box<dyn super::Hierarchy> {
            Box::new(super::NotMounted)
        }
    }

    pub trait Hierarchy {
        fn v2(&self) -> bool;
    }

    struct NotMounted;

    impl Hierarchy for NotMounted {
        fn v2(&self) -> bool {
            false
        }
    }

    pub mod cgroup {
        //! A group, which has no controllers.

        use super::error::{Error, Result};
        use super::{Hierarchy, Subsystem};
        use crate::CgroupPid;
        use std::collections::HashMap;
        use std::path::Path;

        /// The groups of a process, by hierarchy.
        ///
        /// # Errors
        /// Always.
        pub fn get_cgroups_relative_paths_by_pid(_: u32) -> Result<HashMap<String, String>> {
            Err(Error)
        }

        pub struct Cgroup {
            subsystems: Vec<Subsystem>,
        }

        impl Cgroup {
            pub fn load<P: AsRef<Path>>(_: Box<dyn Hierarchy>, _: P) -> Self {
                let subsystems = Vec::new();
                Self { subsystems }
            }

            pub fn load_with_relative_paths<P: AsRef<Path>>(
                hierarchy: Box<dyn Hierarchy>,
                path: P,
                _: HashMap<String, String>,
            ) -> Self {
                Self::load(hierarchy, path)
            }

            pub fn v2(&self) -> bool {
                false
            }

            pub fn subsystems(&self) -> &Vec<Subsystem> {
                &self.subsystems
            }

            /// # Errors
            /// Always.
            pub fn add_task_by_tgid(&self, _: CgroupPid) -> Result<()> {
                Err(Error)
            }
        }
    }

    /// A controller; there is none of any kind.
    pub enum Subsystem {
        Pid(PidController),
        Mem(MemController),
        CpuSet(CpuSetController),
        Cpu(CpuController),
        HugeTlb(HugeTlbController),
        Other(Infallible),
    }

    pub trait Controller {
        fn path(&self) -> &Path;
    }

    pub enum MaxValue {
        Max,
        Value(i64),
    }

    pub mod pid {
        //! The controller of numbers of processes.

        use super::MaxValue;
        use super::error::Result;
        use std::convert::Infallible;

        pub struct PidController(Infallible);

        #[allow(clippy::missing_errors_doc, reason = "nobody can call them")]
        impl PidController {
            pub fn get_pid_current(&self) -> Result<u64> {
                match self.0 {}
            }

            pub fn get_pid_max(&self) -> Result<MaxValue> {
                match self.0 {}
            }

            pub fn set_pid_max(&self, _: MaxValue) -> Result<()> {
                match self.0 {}
            }
        }
    }

    pub struct CpuSetController(Infallible);

    #[allow(clippy::missing_errors_doc, reason = "nobody can call them")]
    impl CpuSetController {
        pub fn set_cpus(&self, _: &str) -> error::Result<()> {
            match self.0 {}
        }

        pub fn set_mems(&self, _: &str) -> error::Result<()> {
            match self.0 {}
        }
    }

    pub struct CpuController(Infallible);

    #[allow(clippy::missing_errors_doc, reason = "nobody can call them")]
    impl CpuController {
        pub fn cpu(&self) -> Cpu {
            match self.0 {}
        }

        pub fn set_shares(&self, _: u64) -> error::Result<()> {
            match self.0 {}
        }

        pub fn set_cfs_quota(&self, _: i64) -> error::Result<()> {
            match self.0 {}
        }

        pub fn set_cfs_period(&self, _: u64) -> error::Result<()> {
            match self.0 {}
        }
    }

    pub struct HugeTlbController(Infallible);

    #[allow(clippy::missing_errors_doc, reason = "nobody can call it")]
    impl HugeTlbController {
        pub fn set_limit_in_bytes(&self, _: &str, _: u64) -> error::Result<()> {
            match self.0 {}
        }
    }

    pub struct MemController(Infallible);

    #[allow(clippy::missing_errors_doc, reason = "nobody can call them")]
    impl MemController {
        pub fn memory_stat(&self) -> Memory {
            match self.0 {}
        }

        pub fn kmem_stat(&self) -> Used {
            match self.0 {}
        }

        pub fn memswap(&self) -> Used {
            match self.0 {}
        }

        pub fn set_limit(&self, _: i64) -> error::Result<()> {
            match self.0 {}
        }

        pub fn set_memswap_limit(&self, _: i64) -> error::Result<()> {
            match self.0 {}
        }
    }

    impl Controller for MemController {
        fn path(&self) -> &Path {
            match self.0 {}
        }
    }

    pub struct Cpu {
        pub stat: String,
    }

    pub struct Memory {
        pub stat: MemoryStat,
        pub oom_control: OomControl,
        pub limit_in_bytes: i64,
        pub usage_in_bytes: u64,
        pub max_usage_in_bytes: u64,
    }

    pub struct MemoryStat {
        pub total_inactive_file: u64,
        pub raw: std::collections::HashMap<String, u64>,
    }

    pub struct OomControl {
        pub oom_kill: u64,
    }

    /// Of swap, and of the kernel's memory.
    pub struct Used {
        pub usage_in_bytes: u64,
        pub max_usage_in_bytes: u64,
    }
}
