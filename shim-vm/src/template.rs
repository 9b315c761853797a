// SPDX-License-Identifier: Apache-2.0
//! Templates: machines that were saved when their agent had said hello and no host had spoken to them,
//! for others to go on as they were (QEMU's migration). Nothing of a container's was ever in one.
//!
//! ```text
//!  /run/dunnage/templates/<key>.state    what QEMU saved: the devices' state, and the memory
//!                         <key>.json     what it is of: a template is there when this is
//!                         <key>.failed   why there is none; it is not tried again for a while
//!                         lock           who makes one has it locked
//!                         making/        where that one mounts what it needs, for itself alone
//! ```
//!
//! The key stands for all that a machine is made of, and nothing else fits; a file that was written
//! to after it was made is no template. What does not fit costs a boot.

pub mod make;
mod store;
mod wish;

pub use store::{Found, Kept, Store};
pub use wish::Wish;

use crate::boot::Purpose;
use crate::config::{Accel, Config};
use crate::image::{AGENT, Image};
use crate::program::Program;
use crate::qemu::{line, slots};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use task::aside;

/// Of what is written here, and of how such a machine is made beside what [`Subject::identity`] tells.
const FORMAT: u32 = 1;

/// What a template is of.
#[derive(Clone)]
pub struct Subject {
    pub image: Image,
    pub accel: Accel,
    /// MiB.
    pub memory: u64,
    pub vcpus: u32,
    pub program: Program,
}

/// What a template goes by.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Everything, in words.
    pub about: String,
    /// The same of `about`, as the name of files.
    pub key: String,
    /// The same for templates of which only the newest is of use.
    pub family: String,
    /// Which of this machine's boots it is of.
    pub boot: String,
}

/// What a VM for `purpose` may go on as, and what would be of use to the next. Why what is there is not
/// used is in the log.
pub async fn look_for(
    purpose: &Purpose<'_>,
    program: &Program,
) -> (Option<Box<Kept>>, Option<Wish>) {
    let config = purpose.config.clone();
    let subject = Subject::new(
        &config,
        purpose.image.clone(),
        purpose.accel,
        program.clone(),
    );
    let looked = aside::run(move || {
        let identity = subject.identity()?;
        Ok::<_, String>((Store::new().find(&identity), identity))
    });
    let (found, identity) = match looked.await {
        Ok(looked) => looked,
        Err(why) => {
            log::warn!("{}: no template of VMs: {why}", purpose.name);
            return (None, None);
        }
    };
    let wish = || Some(Wish::new(&identity, &config, purpose.accel));
    match found {
        Found::Ready(kept) => (Some(kept), None),
        Found::None { wanted } => (None, if wanted { wish() } else { None }),
        Found::Broken(why) => {
            log::warn!(
                "{}: it boots, because its template is none: {why}",
                purpose.name
            );
            (None, wish())
        }
    }
}

impl Subject {
    /// What a VM of this configuration is made of.
    pub fn new(config: &Config, image: Image, accel: Accel, program: Program) -> Self {
        Self {
            image,
            accel,
            memory: config.memory,
            vcpus: config.vcpus,
            program,
        }
    }

    /// Looks at its files.
    ///
    /// # Errors
    /// If one is not there; the text names it.
    pub fn identity(&self) -> Result<Identity, String> {
        let state = |path: &Path| {
            let state = state(path);
            state.map_err(|e| format!("{}: {e}", path.display()))
        };
        let (kernel, initrd) = (state(&self.image.kernel)?, state(&self.image.initrd)?);
        let (program, boot) = (state(&self.program.path)?, boot_id());
        let abilities = self.image.abilities;
        let acpi = line::needs_acpi(abilities, self.accel, self.vcpus, slots::NETWORKS);
        let machine = line::machine(self.accel, self.memory, self.vcpus, acpi).join(" ");
        // Any frequency will do (`line::append`).
        let words = line::append(self.accel, abilities, 0);
        let places = slots::Slots { acpi }.words();
        let (agent, build) = AGENT;
        let about = format!(
            "format {FORMAT}, agent {agent} {build}\nkernel {kernel}\ninitrd {initrd}\n\
             qemu {program}\n{machine}\n{words}{places}\nprocessor {}\nboot {boot}",
            processor()
        );
        let family = format!(
            "{} {} {} {} {:?}",
            self.image.kernel.display(),
            self.program.path.display(),
            self.memory,
            self.vcpus,
            self.accel
        );
        let digest = Sha256::digest(&about);
        Ok(Identity {
            key: hex(&digest[..16]),
            about,
            family,
            boot,
        })
    }
}

/// Which file it is, and when it was changed.
pub fn state(path: &Path) -> io::Result<String> {
    let path = fs::canonicalize(path)?;
    let file = fs::metadata(&path)?;
    Ok(format!(
        "{} {} {} {} {}.{:09}",
        path.display(),
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec()
    ))
}

/// The host's processor: what it is called, and what it can.
pub fn processor() -> String {
    let info = task::proc::text("/proc/cpuinfo").unwrap_or_default();
    let value = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("", |(_, value)| value.trim()).to_owned()
    };
    ["vendor_id", "model name", "stepping", "microcode", "flags"]
        .map(value)
        .join(" ")
}

fn boot_id() -> String {
    let id = task::proc::text("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Abilities;

    #[test]
    fn another_kernel_machine_or_qemu_is_another_template() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let subject = Subject {
            image: Image {
                kernel: file("kernel"),
                initrd: file("initrd"),
                abilities: Abilities::default(),
            },
            accel: Accel::Tcg,
            memory: 512,
            vcpus: 1,
            program: Program {
                path: file("qemu"),
                loader: None,
                libraries: Vec::new(),
                modules: None,
                data: Vec::new(),
            },
        };
        let first = subject.identity().unwrap();
        assert_eq!(subject.identity().unwrap(), first);
        let mut others = Vec::new();
        let mut other = subject.clone();
        other.memory = 256;
        others.push(other.identity().unwrap());
        let mut other = subject.clone();
        other.vcpus = 2;
        others.push(other.identity().unwrap());
        for name in ["kernel", "initrd", "qemu"] {
            fs::write(dir.path().join(name), format!("{name} anew")).unwrap();
            others.push(subject.identity().unwrap());
        }
        let mut keys: Vec<_> = others.iter().map(|other| &other.key).collect();
        keys.push(&first.key);
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), others.len() + 1);
        assert_eq!(others.last().unwrap().family, first.family);
        assert_ne!(others[0].family, first.family);
    }
}
