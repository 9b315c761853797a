// SPDX-License-Identifier: Apache-2.0
//! What a config.json says of the cgroup of the host's, and how that is written into its files.

use crate::block::Block;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use task::cgroup::path_of;

/// Of cpu quotas, in microseconds.
pub const PERIOD: u64 = 100_000;

/// Where limits are in a config.json, as errors name it.
pub const RESOURCES: &str = "linux.resources";

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
    ///
    /// # Errors
    /// As [`Limits::of`] and [`Limits::check`].
    pub fn of(spec: &Value, id: &str) -> Result<Self, String> {
        let path = spec["linux"]["cgroupsPath"].as_str();
        let path = path.filter(|path| !path.is_empty());
        // Only with systemd's driver does a path look so: `slice:prefix:name`.
        let systemd = path.is_some_and(|path| path.matches(':').count() == 2);
        let limits = Limits::of(&spec["linux"]["resources"])?;
        limits.check()?;
        Ok(Self {
            id: id.to_owned(),
            // The shim is no place to begin at: `delete` would look elsewhere.
            cgroup: path.map(|path| Path::new("/").join(path_of(Some(path), id, systemd))),
            limits,
            oom_score_adj: spec["process"]["oomScoreAdj"].as_i64(),
        })
    }
}

/// A container's limits, as far as the host sees to them too. A number that is `None` was not named;
/// one that is negative says that there is no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// In bytes; `swap` counts memory and swap together.
    pub memory: Option<i64>,
    pub swap: Option<i64>,
    /// In microseconds of each [`PERIOD`].
    pub quota: Option<i64>,
    /// cpu.shares.
    pub shares: Option<i64>,
    pub pids: Option<i64>,
    /// The processors, and the nodes of memory, as cpuset(7) lists them.
    pub cpus: Option<String>,
    pub mems: Option<String>,
    pub block: Block,
}

impl Limits {
    /// Reads the `resources` of a config.json, or of an Update.
    ///
    /// # Errors
    /// If one can't be: it names the field and its value.
    pub fn of(resources: &Value) -> Result<Self, String> {
        let signed = |part: &str, name: &str| {
            let field = format!("{part}.{name}");
            number(&resources[part][name], &field, i64::MIN..=i64::MAX)
        };
        let quota = signed("cpu", "quota")?;
        let period = signed("cpu", "period")?.filter(|&n| n > 0);
        let period = period.map_or(PERIOD, i64::unsigned_abs);
        let of_period = |quota: i64| {
            let all = i128::from(quota) * i128::from(PERIOD) / i128::from(period);
            i64::try_from(all).unwrap_or(i64::MAX).max(1)
        };
        let list = |name: &str| {
            let list = resources["cpu"][name].as_str();
            list.filter(|list| !list.is_empty()).map(str::to_owned)
        };
        Ok(Self {
            memory: signed("memory", "limit")?,
            swap: signed("memory", "swap")?,
            quota: quota.map(|quota| if quota > 0 { of_period(quota) } else { quota }),
            shares: signed("cpu", "shares")?,
            pids: signed("pids", "limit")?,
            cpus: list("cpus"),
            mems: list("mems"),
            block: Block::of(&resources["blockIO"])?,
        })
    }

    /// With what an Update sets.
    ///
    /// # Errors
    /// As [`Limits::check`].
    pub fn updated(&self, update: &Self) -> Result<Self, String> {
        let updated = Self {
            memory: update.memory.or(self.memory),
            swap: update.swap.or(self.swap),
            quota: update.quota.or(self.quota),
            shares: update.shares.or(self.shares),
            pids: update.pids.or(self.pids),
            cpus: update.cpus.clone().or_else(|| self.cpus.clone()),
            mems: update.mems.clone().or_else(|| self.mems.clone()),
            block: self.block.updated(&update.block),
        };
        updated.check().map(|()| updated)
    }

    /// Whether they fit together.
    ///
    /// # Errors
    /// It names the field and its value.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |swap, why: &str| Err(format!("{RESOURCES}.memory.swap: {swap}: {why}"));
        match (self.swap, bound(self.memory)) {
            (Some(swap @ 1..), None) => wrong(swap, "without a limit of memory"),
            (Some(swap @ 1..), Some(memory)) if swap.unsigned_abs() < memory => {
                wrong(swap, &format!("less than the limit of memory, {memory}"))
            }
            _ => Ok(()),
        }
    }

    /// Bytes of swap alone.
    pub fn swapped(&self) -> Option<u64> {
        Some(bound(self.swap)?.saturating_sub(bound(self.memory)?))
    }
}

/// A limit, if there is one.
pub fn bound(named: Option<i64>) -> Option<u64> {
    named.filter(|&n| n > 0).map(i64::unsigned_abs)
}

/// The number `value` of the field at `field`, which is below [`RESOURCES`]; 0 is as good as none.
///
/// # Errors
/// If it is something else, or not in `range`.
pub fn number(
    value: &Value,
    field: &str,
    range: std::ops::RangeInclusive<i64>,
) -> Result<Option<i64>, String> {
    match value.as_i64() {
        Some(0) => Ok(None),
        Some(n) if range.contains(&n) => Ok(Some(n)),
        None if value.is_null() => Ok(None),
        _ => {
            let (least, most) = (range.start(), range.end());
            let value = crate::word::line(&value.to_string());
            Err(format!(
                "{RESOURCES}.{field}: {value}: not within {least} to {most}"
            ))
        }
    }
}

/// What is to be written into the first of these files that is there: their names and values.
pub struct Setting {
    pub files: Vec<(&'static str, String)>,
    /// Without such a file there is no such limit.
    pub needed: bool,
}

impl Setting {
    /// Writes it into whichever of `dirs` has such a file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn apply(&self, dirs: &[PathBuf]) -> io::Result<()> {
        for (name, value) in &self.files {
            let mut files = dirs.iter().map(|dir| dir.join(name));
            if let Some(file) = files.find(|file| file.exists()) {
                return write(&file, value);
            }
        }
        match self.files.last() {
            Some((name, value)) if self.needed && !dirs.is_empty() => Err(io::Error::other(
                format!("no cgroup has {name}, for {value}"),
            )),
            _ => Ok(()),
        }
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
            let place = Place::of(&spec, "c").unwrap();
            assert_eq!(place.oom_score_adj, Some(-998));
            place.cgroup
        };
        assert_eq!(cgroup("/k8s.io/c"), Some("/k8s.io/c".into()));
        let scope = "/a.slice/a-b.slice/cri-c.scope";
        assert_eq!(cgroup("a-b.slice:cri:c"), Some(scope.into()));
        assert_eq!(cgroup("c"), Some("/c".into()));
        assert_eq!(cgroup(""), None);
    }

    #[test]
    fn a_limit_that_cannot_be_is_named_with_its_value() {
        let wrong = |resources: Value| {
            let spec = json!({"linux": {"resources": resources}});
            Place::of(&spec, "c").unwrap_err()
        };
        for (resources, why) in [
            (
                json!({"memory": {"limit": 9_223_372_036_854_775_808_u64}}),
                "linux.resources.memory.limit: 9223372036854775808: not within",
            ),
            (
                json!({"memory": {"limit": 100, "swap": 99}}),
                "linux.resources.memory.swap: 99: less than the limit of memory, 100",
            ),
            (
                json!({"memory": {"limit": -1, "swap": 99}}),
                "linux.resources.memory.swap: 99: without a limit of memory",
            ),
            (
                json!({"pids": {"limit": "many"}}),
                "linux.resources.pids.limit: \"many\": not within",
            ),
            (
                json!({"cpu": {"quota": 1.5}}),
                "linux.resources.cpu.quota: 1.5: not within",
            ),
            (
                json!({"blockIO": {"weight": 9}}),
                "linux.resources.blockIO.weight: 9: not within 10 to 1000",
            ),
        ] {
            let told = wrong(resources);
            assert!(told.starts_with(why), "{told}");
        }
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let of = |resources: Value| Limits::of(&resources).unwrap();
        let limits = of(json!({"memory": {"limit": 100, "swap": 150}, "pids": {"limit": 5}}));
        assert_eq!(limits.swapped(), Some(50));
        let updated = limits
            .updated(&of(json!({"memory": {"limit": 120}})))
            .unwrap();
        assert_eq!((updated.swapped(), updated.pids), (Some(30), Some(5)));
        assert!(
            limits
                .updated(&of(json!({"memory": {"limit": 151}})))
                .is_err()
        );
        let none = json!({"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}});
        let none = limits.updated(&of(none)).unwrap();
        assert_eq!((bound(none.memory), bound(none.pids)), (None, None));
        assert_eq!(none.swapped(), None);
    }
}
