//! What a config.json says of the cgroup of the host's, and how that is written into its files.

use serde_json::Value;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use task::cgroup::path_of;

/// Of cpu quotas, in microseconds.
pub const PERIOD: u64 = 100_000;

/// What a config.json says of the host's cgroup.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// The container.
    pub id: String,
    /// As for [`task::cgroup::Remains::find`]; `None`: wherever the shim is.
    pub cgroup: Option<PathBuf>,
    pub limits: Limits,
    pub oom_score_adj: Option<i64>,
}

impl Place {
    /// Of the container `id`, whose config.json is `spec`.
    pub fn of(spec: &Value, id: &str) -> Self {
        let path = spec["linux"]["cgroupsPath"].as_str();
        let path = path.filter(|path| !path.is_empty());
        // Only with systemd's driver does a path look so: `slice:prefix:name`.
        let systemd = path.is_some_and(|path| path.matches(':').count() == 2);
        Self {
            id: id.to_owned(),
            // The shim is no place to begin at: `delete` would look elsewhere.
            cgroup: path.map(|path| Path::new("/").join(path_of(Some(path), id, systemd))),
            limits: Limits::of(&spec["linux"]["resources"]),
            oom_score_adj: spec["process"]["oomScoreAdj"].as_i64(),
        }
    }
}

/// A container's limits, as far as the host sees to them too; what is `None` has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// In bytes.
    pub memory: Option<u64>,
    /// In microseconds of each [`PERIOD`].
    pub quota: Option<u64>,
    /// cpu.shares.
    pub shares: Option<u64>,
    /// The processors, and the nodes of memory, as cpuset(7) lists them.
    pub cpus: Option<String>,
    pub mems: Option<String>,
}

impl Limits {
    /// Reads the `resources` of a config.json, or of an Update.
    pub fn of(resources: &Value) -> Self {
        let cpu = &resources["cpu"];
        let positive = |value: &Value| value.as_i64().filter(|&n| n > 0).map(i64::unsigned_abs);
        let period = positive(&cpu["period"]).unwrap_or(PERIOD);
        let of_period = |quota: u64| u128::from(quota) * u128::from(PERIOD) / u128::from(period);
        let list = |value: &Value| {
            value
                .as_str()
                .filter(|list| !list.is_empty())
                .map(str::to_owned)
        };
        Self {
            memory: positive(&resources["memory"]["limit"]),
            quota: positive(&cpu["quota"])
                .map(|quota| u64::try_from(of_period(quota)).unwrap_or(u64::MAX)),
            shares: positive(&cpu["shares"]),
            cpus: list(&cpu["cpus"]),
            mems: list(&cpu["mems"]),
        }
    }

    /// With what an Update sets.
    pub fn updated(&self, update: &Self) -> Self {
        Self {
            memory: update.memory.or(self.memory),
            quota: update.quota.or(self.quota),
            shares: update.shares.or(self.shares),
            cpus: update.cpus.clone().or_else(|| self.cpus.clone()),
            mems: update.mems.clone().or_else(|| self.mems.clone()),
        }
    }
}

/// What is to be written: into a file of version 1, or into one of version 2.
pub struct Setting {
    pub v1: (&'static str, String),
    pub v2: (&'static str, String),
    /// Without either file there is no such limit.
    pub needed: bool,
}

impl Setting {
    /// Writes it into whichever of `dirs` has such a file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn apply(&self, dirs: &[PathBuf]) -> io::Result<()> {
        for (name, value) in [&self.v1, &self.v2] {
            let mut files = dirs.iter().map(|dir| dir.join(name));
            if let Some(file) = files.find(|file| file.exists()) {
                return write(&file, value);
            }
        }
        if self.needed && !dirs.is_empty() {
            let (name, value) = &self.v2;
            return Err(io::Error::other(format!(
                "no cgroup has {name}, for {value}"
            )));
        }
        Ok(())
    }
}

/// Writes to a file of the kernel's, which is there.
///
/// # Errors
/// Naming it.
pub fn write(file: &Path, value: &str) -> io::Result<()> {
    let written = File::options()
        .write(true)
        .open(file)
        .and_then(|mut open| open.write_all(value.as_bytes()));
    written.map_err(|e| named(file, value, &e))
}

/// An error of the file or directory at `path`.
pub fn named(path: &Path, value: &str, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {value}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_place_is_the_one_that_a_runtime_would_take() {
        let cgroup = |path: &str| {
            let spec = json!({"linux": {"cgroupsPath": path}, "process": {"oomScoreAdj": -998}});
            let place = Place::of(&spec, "c");
            assert_eq!(place.oom_score_adj, Some(-998));
            place.cgroup
        };
        assert_eq!(cgroup("/k8s.io/c"), Some("/k8s.io/c".into()));
        let scope = "/a.slice/a-b.slice/cri-c.scope";
        assert_eq!(cgroup("a-b.slice:cri:c"), Some(scope.into()));
        assert_eq!(cgroup("c"), Some("/c".into()));
        assert_eq!(cgroup(""), None);
    }
}
