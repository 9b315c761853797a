// SPDX-License-Identifier: Apache-2.0
//! What is written down of a checkpoint, and whether that fits to a VM that is to go on as it.

use crate::config::Accel;
use crate::container;
use crate::machine::Plan;
use crate::qemu::line;
use crate::template::{hex, processor, state};
use crate::vm::Session;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use task::aside;

/// Of all that is written into a checkpoint.
pub const FORMAT: u32 = 1;
/// The most that is read of a manifest.
const LONGEST: u64 = 4 << 20;

/// What a VM is made of, as its shim knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Built {
    pub accel: Accel,
    /// MiB.
    pub memory: u64,
    pub vcpus: u32,
    pub networks: usize,
    pub acpi: bool,
    /// Its kernel and its initrd, and which files they were.
    image: [(PathBuf, String); 2],
}

/// The same, as it is known on another host.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pub qemu: String,
    pub processor: String,
    pub accel: Accel,
    pub memory: u64,
    pub vcpus: u32,
    pub networks: usize,
    pub acpi: bool,
    kernel: String,
    initrd: String,
}

#[derive(Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub machine: Machine,
    /// Of the state.
    pub bytes: u64,
    pub sha256: String,
    pub session: Session,
    pub container: container::Moved,
}

impl Built {
    /// What `plan` is of.
    ///
    /// # Errors
    /// If a file is not there.
    pub async fn of(plan: &Plan) -> Result<Self, String> {
        let files = [plan.image.kernel.clone(), plan.image.initrd.clone()];
        let known = aside::run(move || {
            let [kernel, initrd] = files.map(|path| {
                let named = |e| format!("{}: {e}", path.display());
                state(&path).map_err(named).map(|state| (path, state))
            });
            Ok::<_, String>([kernel?, initrd?])
        });
        Ok(Self {
            accel: plan.accel,
            memory: plan.memory,
            vcpus: plan.vcpus,
            networks: plan.taps.len(),
            acpi: line::slots(plan).acpi,
            image: known.await?,
        })
    }

    /// The same with QEMU `qemu`, wherever it is. Reads files.
    ///
    /// # Errors
    /// If one can't be read, or is another by now.
    pub fn machine(&self, qemu: String) -> Result<Machine, String> {
        let [kernel, initrd] = self.image.each_ref().map(|(path, known)| {
            let named = |e: io::Error| format!("{}: {e}", path.display());
            if state(path).map_err(named)? != *known {
                return Err(format!("{}: it was changed since", path.display()));
            }
            digest(&File::open(path).map_err(named)?).map_err(named)
        });
        Ok(Machine {
            qemu,
            processor: processor(),
            accel: self.accel,
            memory: self.memory,
            vcpus: self.vcpus,
            networks: self.networks,
            acpi: self.acpi,
            kernel: kernel?,
            initrd: initrd?,
        })
    }
}

impl Machine {
    /// Whether one that is `ours` can go on as this one.
    ///
    /// # Errors
    /// What differs, by its name.
    pub fn fits(&self, ours: &Self) -> Result<(), String> {
        let mib = |memory: u64| format!("{memory} MiB");
        let accel = |accel: Accel| format!("{accel:?}");
        let differs = [
            ("QEMU", self.qemu.clone(), ours.qemu.clone()),
            ("kernel", self.kernel.clone(), ours.kernel.clone()),
            ("initrd", self.initrd.clone(), ours.initrd.clone()),
            ("processor", self.processor.clone(), ours.processor.clone()),
            ("accel", accel(self.accel), accel(ours.accel)),
            ("memory", mib(self.memory), mib(ours.memory)),
            ("vcpus", self.vcpus.to_string(), ours.vcpus.to_string()),
            (
                "network devices",
                self.networks.to_string(),
                ours.networks.to_string(),
            ),
        ];
        for (what, was, is) in differs {
            if was != is {
                return Err(format!("{what}: it is of {was:?}, and here is {is:?}"));
            }
        }
        Ok(())
    }
}

impl Manifest {
    /// Reads that at `path`.
    ///
    /// # Errors
    /// If there is none, or it is none that can be understood.
    pub fn read(path: &Path) -> Result<Self, String> {
        let named = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let file = open(path).map_err(|e| named(&e))?;
        let mut text = Vec::new();
        let read = file.take(LONGEST).read_to_end(&mut text);
        read.map_err(|e| named(&e))?;
        let form: Form = serde_json::from_slice(&text).map_err(|e| named(&e))?;
        if form.format != FORMAT {
            let why = format!("format {}, and here is {FORMAT}", form.format);
            return Err(named(&why));
        }
        serde_json::from_slice(&text).map_err(|e| named(&e))
    }
}

/// Opens a file to read it, if it is one: nothing is waited for.
///
/// # Errors
/// From open(2), and if it is another kind of file.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// What every manifest has.
#[derive(Deserialize)]
struct Form {
    format: u32,
}

/// The hash of what is in a file from where it stands.
///
/// # Errors
/// If it can't be read.
pub fn digest(mut file: &File) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&digest.finalize())),
            n => digest.update(&buffer[..n]),
        }
    }
}
