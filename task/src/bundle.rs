// SPDX-License-Identifier: Apache-2.0
//! Every file name in a bundle, and what its small files say (contract B80).
//!
//! A bundle may lie on a disk: a loop does what is here that touches files aside.

use crate::error::{Error, Result};
pub use crate::foreign::read_pid;
use crate::foreign::{SMALL, SPEC, read_whole};
use crate::json;
use crate::oci::Options;
use crate::process::ProcessId;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory that containerd made for one container.
#[derive(Clone, Debug)]
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the container's root file system is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Files of the container's that outlive the bundle's tmpfs, such as CRIU's.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// CRIU's log of a checkpoint that failed (T73).
    pub fn criu_dump_log(&self) -> PathBuf {
        self.path.join("criu-dump.log")
    }

    /// What the OCI runtime logs, one JSON object a line.
    pub fn runtime_log(&self) -> PathBuf {
        self.path.join("log.json")
    }

    /// The log of one exec's start, apart from the container's because they run at once.
    pub fn exec_log(&self, exec: &str) -> PathBuf {
        self.path.join(format!("{exec}.log.json"))
    }

    /// Where the OCI runtime writes a process's pid, by Go's names. One that an exec can't have
    /// is that of an exec called init.
    pub fn pid(&self, process: &ProcessId) -> PathBuf {
        match process {
            ProcessId::Init => self.path.join("init.pid"),
            ProcessId::Exec(exec) if exec == "init" => self.path.join(".init.pid"),
            ProcessId::Exec(exec) => self.path.join(format!("{exec}.pid")),
        }
    }

    /// The OCI process of an exec, while the OCI runtime reads it.
    pub fn exec_spec(&self, exec: &str) -> PathBuf {
        self.path.join(format!("{exec}.process.json"))
    }

    /// How a process ended, for `delete` and for a manager that was away.
    fn exit_record(&self, process: &ProcessId) -> PathBuf {
        let name = match process {
            ProcessId::Init => "init.json".to_owned(),
            ProcessId::Exec(exec) => format!("exec-{exec}.json"),
        };
        self.path.join("exits").join(name)
    }

    /// Where the OCI runtime sends the pty of a process, while it starts; each has its number.
    pub fn console_socket(&self, process: &str, number: u32) -> PathBuf {
        self.path.join(format!("{process}.{number}.pty"))
    }

    /// Removes what a start that was cut off has left: sockets for ptys, specs of execs.
    pub fn remove_rubbish(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".pty") || name.ends_with(".process.json") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// The other bundles beside this one: those of the same namespace.
    pub fn siblings(&self) -> Vec<Self> {
        let entries = self.path.parent().map(fs::read_dir);
        let paths = entries.into_iter().flatten().flatten().flatten();
        let others = paths.map(|entry| entry.path());
        others
            .filter(|path| *path != self.path)
            .map(Self::new)
            .collect()
    }

    /// Makes the mount point of the root file system (0711).
    ///
    /// # Errors
    /// If it can't be made.
    pub fn make_rootfs(&self) -> Result<()> {
        let path = self.rootfs();
        match fs::DirBuilder::new().mode(0o711).create(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("mkdir", path)(e)),
            _ => Ok(()),
        }
    }

    /// Writes what `delete` needs when this process is gone: `runtime` and `options.json` (T10).
    ///
    /// # Errors
    /// If they can't be written.
    pub fn write_options(&self, options: &Options) -> Result<()> {
        self.write("runtime", options.binary_name.as_bytes())?;
        let json = serde_json::to_vec(options).map_err(io::Error::from);
        self.write(
            "options.json",
            &json.map_err(Error::io("encode", "options.json"))?,
        )
    }

    /// What [`Bundle::write_options`] wrote; files that are missing give the defaults (D2), and so
    /// do empty ones: a shim that writes in place may have been killed before the first byte.
    ///
    /// # Errors
    /// If options.json is there and does not parse, or a file can't be read.
    pub fn read_options(&self) -> Result<Options> {
        let path = self.path.join("options.json");
        let mut options = match read_if_there(&path, SPEC)?.filter(|json| !json.is_empty()) {
            None => Options::default(),
            Some(json) => json::read(&json).map_err(|e| Error::io("parse", &path)(e.into()))?,
        };
        if let Some(name) = read_if_there(&self.path.join("runtime"), SMALL)?
            && let Ok(name) = String::from_utf8(name)
            && !name.is_empty()
        {
            options.binary_name = name;
        }
        Ok(options)
    }

    /// Records an exit before anybody is told of it: from now on it survives this process.
    ///
    /// # Errors
    /// If the record can't be written; the bundle may be gone.
    pub fn write_exit(&self, process: &ProcessId, record: &ExitRecord) -> Result<()> {
        let path = self.exit_record(process);
        let failed = |e| Error::io("write", &path)(e);
        if let Some(dir) = path.parent() {
            match fs::DirBuilder::new().mode(0o700).create(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
                _ => {}
            }
        }
        let json = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
        replace(&path, &json).map_err(failed)
    }

    /// The recorded exit of a process, if it has one.
    ///
    /// # Errors
    /// If the record is there and can't be read.
    pub fn read_exit(&self, process: &ProcessId) -> Result<Option<ExitRecord>> {
        let path = self.exit_record(process);
        let Some(json) = read_if_there(&path, SMALL)? else {
            return Ok(None);
        };
        let record = json::read(&json).map(Some);
        record.map_err(|e| Error::io("parse", &path)(e.into()))
    }

    /// Forgets the exit of a process that is deleted.
    pub fn remove_exit(&self, process: &ProcessId) {
        let _ = fs::remove_file(self.exit_record(process));
    }

    /// The parts of config.json that a shim looks at.
    ///
    /// # Errors
    /// If config.json is missing, unreadable or not an OCI spec.
    pub fn read_spec(&self) -> Result<Spec> {
        let path = self.path.join("config.json");
        let json = read_whole(&path, SPEC).map_err(Error::io("open", &path))?;
        json::read_first(&json).map_err(|e| Error::io("parse", &path)(io::Error::from(e)))
    }

    /// That of a sandbox without a container has none.
    pub fn has_spec(&self) -> bool {
        self.path.join("config.json").exists()
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        replace(&path, content).map_err(Error::io("write", &path))
    }
}

/// Writes a file that is there whole or not at all, whenever this process may be killed.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    write_private(&temporary, content)?;
    fs::rename(&temporary, path)
}

/// How a process ended, as its bundle keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub pid: u32,
    /// The exit code, or 128 plus the signal.
    pub exit_status: u32,
    /// When the shim reaped it: seconds since 1970, and nanoseconds.
    pub exited_at: (i64, i32),
}

/// Writes a file that only we may read.
///
/// # Errors
/// From open(2) and write(2).
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    io::Write::write_all(&mut file, content)
}

fn read_if_there(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    match read_whole(path, most) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", path)(e)),
    }
}

/// A config.json, as far as a shim reads it (OCI runtime-spec config.md). As Go's shim, it insists
/// on annotations that are texts; all else is the OCI runtime's to refuse.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    pub annotations: Option<HashMap<String, String>>,
    #[serde(deserialize_with = "json::lenient")]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    #[serde(rename = "cgroupsPath", deserialize_with = "json::lenient")]
    cgroups_path: Option<String>,
    #[serde(deserialize_with = "json::lenient")]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

impl Spec {
    /// True if the container has a pid namespace of its own, so that the kernel ends every
    /// process in it with init (X4; R/util.go).
    pub fn has_own_pid_namespace(&self) -> bool {
        let namespaces = self
            .linux
            .as_ref()
            .and_then(|linux| linux.namespaces.as_deref());
        namespaces
            .unwrap_or_default()
            .iter()
            .any(|n| n.kind == "pid" && n.path.is_empty())
    }

    /// Where the container's cgroup is to be, as config.json says it.
    pub fn cgroups_path(&self) -> Option<&str> {
        self.linux.as_ref()?.cgroups_path.as_deref()
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        json::read(json.as_bytes()).unwrap()
    }

    #[test]
    fn own_pid_namespace_means_one_without_a_path() {
        assert!(spec(r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#).has_own_pid_namespace());
        let joined = r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#;
        assert!(!spec(joined).has_own_pid_namespace());
        assert!(!spec(r#"{"linux":{"namespaces":null}}"#).has_own_pid_namespace());
        assert!(!spec("{}").has_own_pid_namespace());
    }

    #[test]
    fn options_come_back_as_written_and_missing_files_give_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path());
        assert_eq!(bundle.read_options().unwrap(), Options::default());
        let options = Options {
            root: "/x".into(),
            binary_name: "crun".into(),
            ..Options::default()
        };
        bundle.write_options(&options).unwrap();
        assert_eq!(bundle.read_options().unwrap(), options);
        let json = fs::read_to_string(dir.path().join("options.json")).unwrap();
        assert_eq!(json, r#"{"binary_name":"crun","root":"/x"}"#);
        fs::write(dir.path().join("options.json"), "").unwrap();
        assert_eq!(bundle.read_options().unwrap().root, "");
    }

    #[test]
    fn exit_records_come_back_and_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path());
        let (init, exec) = (ProcessId::Init, ProcessId::Exec("init".into()));
        assert_ne!(bundle.pid(&init), bundle.pid(&exec));
        assert_eq!(bundle.read_exit(&init).unwrap(), None);
        let record = ExitRecord {
            pid: 7,
            exit_status: 137,
            exited_at: (1, 2),
        };
        bundle.write_exit(&init, &record).unwrap();
        let other = ExitRecord {
            pid: 8,
            ..record.clone()
        };
        bundle.write_exit(&exec, &other).unwrap();
        assert_eq!(bundle.read_exit(&init).unwrap(), Some(record));
        bundle.remove_exit(&exec);
        assert_eq!(bundle.read_exit(&exec).unwrap(), None);
        fs::write(dir.path().join("exits/init.json"), "{").unwrap();
        assert!(
            bundle
                .read_exit(&init)
                .unwrap_err()
                .to_string()
                .contains("init.json")
        );
    }

    /// Whoever wrote it: a file without an end is refused, not read.
    #[test]
    fn files_of_others_are_read_to_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path());
        fs::create_dir(dir.path().join("exits")).unwrap();
        for name in ["init.pid", "options.json", "exits/init.json", "config.json"] {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            file.set_len(1 << 40).unwrap();
        }
        let said = [
            read_pid(&bundle.pid(&ProcessId::Init)).map(drop),
            bundle.read_options().map(drop),
            bundle.read_exit(&ProcessId::Init).map(drop),
            bundle.read_spec().map(drop),
        ];
        for said in said.map(|said| said.unwrap_err().to_string()) {
            assert!(said.contains("longer than"), "{said}");
        }
    }
}
