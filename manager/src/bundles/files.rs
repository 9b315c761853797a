// SPDX-License-Identifier: Apache-2.0
//! The files of one bundle, for a thread that may wait for them.

use crate::failure::{Failure, exists, io, precondition};
use crate::launch::Address;
use crate::store::{make_dir, write};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use prost::Message;
use protos::task::DeleteResponse;
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use task::ProcessId;
use task::bundle::ExitRecord;
use task::cgroup::{Remains, path_of};
use task::foreign::{SMALL, read_head, read_whole};

/// Where they are.
#[derive(Clone, Debug)]
pub struct Files {
    pub path: PathBuf,
    pub work: PathBuf,
}

/// The part of a spec that decides who owns the bundle.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    gid_mappings: Option<Vec<Mapping>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Mapping {
    #[serde(rename = "containerID")]
    container: u32,
    #[serde(rename = "hostID")]
    host: u32,
}

impl Files {
    /// Makes a bundle around `spec`.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one; nothing is left of a bundle that could not be made.
    pub fn create(&self, spec: &[u8]) -> Result<(), Failure> {
        for dir in [&self.path, &self.work] {
            let parent = dir.parent().unwrap_or(dir);
            make_dir(parent).map_err(io("create bundle"))?;
        }
        let mut private = fs::DirBuilder::new();
        private
            .mode(0o700)
            .create(&self.path)
            .map_err(|e| match e.kind() {
                ErrorKind::AlreadyExists => exists(format!("bundle {}", self.path.display())),
                _ => io("create bundle")(e),
            })?;
        let filled = self.fill(spec);
        if filled.is_err() {
            let _ = fs::remove_dir_all(&self.path);
            let _ = fs::remove_dir_all(&self.work);
        }
        filled
    }

    fn fill(&self, spec: &[u8]) -> Result<(), Failure> {
        let failed = |what: &'static str| io(format!("bundle {}: {what}", self.path.display()));
        let spec_json: Spec = task::json::read_first(spec).unwrap_or_default();
        let mappings = spec_json.linux.unwrap_or_default().gid_mappings;
        let root = mappings
            .unwrap_or_default()
            .into_iter()
            .find(|m| m.container == 0);
        if let Some(root) = root {
            std::os::unix::fs::chown(&self.path, None, Some(root.host)).map_err(failed("chown"))?;
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o710))
                .map_err(failed("chmod"))?;
        }
        let mut dir = fs::DirBuilder::new();
        dir.mode(0o711)
            .create(self.rootfs())
            .map_err(failed("rootfs"))?;
        match dir.create(&self.work) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                fs::remove_dir_all(&self.work).map_err(failed("work"))?;
                dir.create(&self.work).map_err(failed("work"))?;
            }
            other => other.map_err(failed("work"))?,
        }
        symlink(&self.work, self.path.join("work")).map_err(failed("work"))?;
        fs::write(self.path.join("config.json"), spec).map_err(failed("config.json"))
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    fn start_out(&self) -> PathBuf {
        self.path.join("start.out")
    }

    /// The FIFO that the shim logs to, made if it is not there; it is open at both ends: a shim
    /// must never find it without a reader, nor we the end of it.
    ///
    /// # Errors
    /// From the file system.
    pub fn open_log(&self) -> std::io::Result<File> {
        let path = self.path.join("log");
        match mkfifo(&path, Mode::S_IRWXU) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let mut options = File::options();
        options.read(true).write(true);
        options.custom_flags(nix::libc::O_NONBLOCK).open(path)
    }

    /// Where `start` is to write what it says, on its stdout and its stderr. The first survives us,
    /// and whoever comes after us finds the shim by it. It is locked for as long as `start` has it
    /// open, with us or after us.
    ///
    /// # Errors
    /// From the file system.
    pub fn outputs_of_start(&self) -> std::io::Result<(File, File)> {
        let out = File::create(self.start_out())?;
        crate::sys::lock(&out)?;
        Ok((out, File::create(self.path.join("start.err"))?))
    }

    /// What `start` has printed, and what it has complained of.
    ///
    /// # Errors
    /// If there is nothing to be read.
    pub fn said_by_start(&self) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
        let errors = read_head(&self.path.join("start.err"), SMALL);
        Ok((
            read_head(&self.start_out(), SMALL)?,
            errors.unwrap_or_default(),
        ))
    }

    /// What a `start` that may still run has open and locked.
    pub fn start_lock(&self) -> Option<File> {
        File::open(self.start_out()).ok()
    }

    /// Where `delete` is to write its answer.
    ///
    /// # Errors
    /// From the file system.
    pub fn output_of_delete(&self) -> std::io::Result<File> {
        File::create(self.path.join("delete.out"))
    }

    /// The answer of `delete`.
    ///
    /// # Errors
    /// From the file system, and if it is too long for an answer.
    pub fn answer_of_delete(&self) -> std::io::Result<Vec<u8>> {
        read_whole(&self.path.join("delete.out"), SMALL)
    }

    /// Has the shim's `delete` look for runc's state where it is to be, also before its Create has
    /// said so: elsewhere it would find somebody else's.
    ///
    /// # Errors
    /// From the file system.
    pub fn write_root(&self, root: &str) -> Result<(), Failure> {
        let json = serde_json::json!({"root": root}).to_string();
        write(&self.path.join("options.json"), json.as_bytes())
    }

    /// # Errors
    /// `FailedPrecondition` if there is a process in the cgroup that the container is to have, and no
    /// other of our containers is said to be there.
    pub fn check_cgroup(&self, systemd: bool) -> Result<(), Failure> {
        let place = |bundle: &task::bundle::Bundle| {
            let (spec, id) = (bundle.read_spec().ok()?, bundle.path().file_name()?);
            Some(path_of(spec.cgroups_path(), id.to_str()?, systemd))
        };
        let ours = self.of_shim();
        let Some(path) = place(&ours) else {
            return Ok(());
        };
        let occupied = |others: &[PathBuf]| {
            let cgroups = Remains::find(&path, others);
            cgroups.dirs().iter().find_map(|dir| {
                let pids = task::proc::text(dir.join("cgroup.procs")).ok()?;
                let (dir, pid) = (dir.display(), pids.lines().next()?);
                Some(format!(
                    "cgroup {dir}: process {pid} is in it, which is not ours"
                ))
            })
        };
        let by_others = occupied(&[]).and_then(|_| {
            let others: Vec<PathBuf> = ours.siblings().iter().filter_map(place).collect();
            occupied(&others)
        });
        by_others.map_or(Ok(()), |why| Err(precondition(why)))
    }

    /// # Errors
    /// From the file system.
    pub fn write_shim_path(&self, shim: &Path) -> Result<(), Failure> {
        let path = self.path.join("shim-binary-path");
        write(&path, shim.as_os_str().as_encoded_bytes())
    }

    /// The shim that was started here, if one was.
    pub fn shim_path(&self) -> Option<PathBuf> {
        let path = fs::read(self.path.join("shim-binary-path")).ok()?;
        let path = OsStr::from_bytes(path.trim_ascii());
        Some(PathBuf::from(path)).filter(|path| path.is_absolute())
    }

    /// # Errors
    /// From the file system.
    pub fn write_address(&self, address: &Address) -> Result<(), Failure> {
        let json = serde_json::to_vec(address).map_err(crate::failure::unknown)?;
        write(&self.path.join("bootstrap.json"), &json)
    }

    /// How the shim is reached, by whichever record of it is there.
    pub fn address(&self) -> Option<Address> {
        if let Ok(json) = read_whole(&self.path.join("bootstrap.json"), SMALL)
            && let Ok(address) = task::json::read(&json)
        {
            return Some(address);
        }
        let printed = read_whole(&self.start_out(), SMALL).unwrap_or_default();
        if let Ok(address) = Address::parse(&printed) {
            return Some(address);
        }
        Address::parse(&read_whole(&self.path.join("address"), SMALL).ok()?).ok()
    }

    /// Notes that the shim has deleted the task, and with what status.
    ///
    /// # Errors
    /// From the file system.
    pub fn mark_deleting(&self, response: &DeleteResponse) -> Result<(), Failure> {
        write(&self.path.join("deleting"), &response.encode_to_vec())
    }

    pub fn deleting(&self) -> Option<DeleteResponse> {
        DeleteResponse::decode(fs::read(self.path.join("deleting")).ok()?.as_slice()).ok()
    }

    /// The shim's own record of how a process ended.
    pub fn exit_record(&self, process: &ProcessId) -> Option<ExitRecord> {
        match self.of_shim().read_exit(process) {
            Ok(record) => record,
            Err(e) => {
                log::warn!("{}: {e}", self.path.display());
                None
            }
        }
    }

    pub fn init_pid(&self) -> Option<u32> {
        task::bundle::read_pid(&self.of_shim().pid(&ProcessId::Init)).ok()
    }

    /// The bundle as its shim knows it.
    fn of_shim(&self) -> task::bundle::Bundle {
        task::bundle::Bundle::new(&self.path)
    }

    /// Removes it, in which nothing is mounted any more.
    ///
    /// # Errors
    /// From the file system.
    pub fn remove(&self, id: &str) -> Result<(), Failure> {
        if self.path.exists() {
            let hidden = self.path.with_file_name(format!(".{id}"));
            if hidden.exists() {
                let _ = fs::remove_dir_all(&hidden);
            }
            fs::rename(&self.path, &hidden).map_err(io(self.path.display()))?;
            fs::remove_dir_all(&hidden).map_err(io(hidden.display()))?;
        }
        match fs::remove_dir_all(&self.work) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(io(self.work.display())(e)),
            _ => Ok(()),
        }
    }
}
