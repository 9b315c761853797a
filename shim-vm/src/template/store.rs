// SPDX-License-Identifier: Apache-2.0
//! Where templates are kept: what is there, and what may be used.

use super::{Identity, hex};
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg};
use nix::unistd::{Whence, linkat, lseek};
use protos::Message;
use protos::guest::Hello;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const DIR: &str = "/run/dunnage/templates";
const STATE: &str = "state";
const MANIFEST: &str = "json";
const FAILED: &str = "failed";
const LOCK: &str = "lock";
const MAKING: &str = "making";
/// How long after a failure it is not tried again.
const AGAIN: Duration = Duration::from_secs(60 * 60);
/// The most templates there are, and the most bytes that they take.
const MOST: usize = 8;
const MOST_BYTES: u64 = 2 << 30;
/// The most that is read of a manifest.
const MANIFEST_SIZE: u64 = 64 << 10;

/// A directory of templates.
pub struct Store(PathBuf);

/// A template: what a machine was, open for reading, and what its agent had said.
pub struct Kept {
    pub identity: Identity,
    pub state: File,
    pub hello: Hello,
}

/// What there is for somebody who wants a machine.
pub enum Found {
    Ready(Box<Kept>),
    /// None; `wanted`: and nobody has tried in vain lately to make one.
    None {
        wanted: bool,
    },
    /// What is there is no template, for this reason.
    Broken(String),
}

/// What is written down of a template.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    about: String,
    family: String,
    boot: String,
    /// The version of QEMU that saved it.
    qemu: String,
    state: Version,
    /// Of what is in it, holes left out: each piece after its offset.
    sha256: String,
    /// The agent's hello, as protobuf has it.
    hello: Vec<u8>,
}

/// Which file it is, and in which state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Version {
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds of its last change, of any kind (stat(2), st_ctim).
    changed: (i64, i64),
}

impl Version {
    fn of(file: &File) -> io::Result<Self> {
        let file = file.metadata()?;
        Ok(Self {
            inode: file.ino(),
            bytes: file.size(),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

impl Store {
    /// The machine's.
    pub fn new() -> Self {
        Self(DIR.into())
    }

    fn file(&self, key: &str, kind: &str) -> PathBuf {
        self.0.join(format!("{key}.{kind}"))
    }

    /// What there is of `identity`.
    pub fn find(&self, identity: &Identity) -> Found {
        let path = self.file(&identity.key, MANIFEST);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let wanted = !self.has_failed(&identity.key);
                return Found::None { wanted };
            }
            text => text.map_err(|e| e.to_string()),
        };
        let kept = text.and_then(|text| self.open(identity, &text));
        match kept {
            Ok(kept) => Found::Ready(Box::new(kept)),
            Err(why) => Found::Broken(format!("{}: {why}", path.display())),
        }
    }

    fn open(&self, identity: &Identity, text: &[u8]) -> Result<Kept, String> {
        let manifest: Manifest = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if manifest.about != identity.about {
            return Err("it is of something else".into());
        }
        let state = File::open(self.file(&identity.key, STATE));
        let state = state.map_err(|e| format!("its state: {e}"))?;
        let version = Version::of(&state).map_err(|e| format!("its state: {e}"))?;
        if version != manifest.state {
            return Err("its state was changed after it was made".into());
        }
        let hello = Hello::decode(&*manifest.hello).map_err(|e| format!("its hello: {e}"))?;
        Ok(Kept {
            identity: identity.clone(),
            state,
            hello,
        })
    }

    /// Whether what is in the state of a template is what was written.
    ///
    /// # Errors
    /// If it is not, or can't be read.
    pub fn verify(&self, kept: &Kept) -> Result<(), String> {
        let text = fs::read(self.file(&kept.identity.key, MANIFEST)).map_err(|e| e.to_string())?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        match digest(&kept.state).map_err(|e| e.to_string())? == manifest.sha256 {
            true => Ok(()),
            false => Err("its state is not what was written".into()),
        }
    }

    fn has_failed(&self, key: &str) -> bool {
        let at = fs::metadata(self.file(key, FAILED)).and_then(|file| file.modified());
        let age = at.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        age.is_ok_and(|age| age < AGAIN)
    }

    /// Why there is no template, if that was tried.
    pub fn failure(&self, key: &str) -> Option<String> {
        let why = fs::read(self.file(key, FAILED)).ok()?;
        Some(String::from_utf8_lossy(&why).into_owned())
    }

    /// There is none, and it is not tried again for a while.
    pub fn fail(&self, key: &str, why: &str) {
        self.remove(key);
        if let Err(e) = fs::write(self.file(key, FAILED), why.replace('\n', " ")) {
            log::debug!("{key}: {e}");
        }
    }

    /// Removes a template; machines that are made of it go on.
    pub fn remove(&self, key: &str) {
        for kind in [MANIFEST, STATE, FAILED] {
            let _ = fs::remove_file(self.file(key, kind));
        }
    }

    /// Makes the directory, whose own is there, and becomes the one who makes templates, until the lock is
    /// dropped; `None` if somebody else is, unless this `waits` for that one.
    ///
    /// # Errors
    /// If it can't be made, or locked.
    pub fn lock(&self, waits: bool) -> io::Result<Option<Flock<File>>> {
        for dir in [&self.0, &self.making()] {
            match fs::DirBuilder::new().mode(0o700).create(dir) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        let mut options = File::options();
        let lock = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = lock.open(self.0.join(LOCK))?;
        let how = match waits {
            true => FlockArg::LockExclusive,
            false => FlockArg::LockExclusiveNonblock,
        };
        match Flock::lock(lock, how) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::Error::EAGAIN)) => Ok(None),
            Err((_, e)) => Err(e.into()),
        }
    }

    /// An empty directory to mount something on.
    pub fn making(&self) -> PathBuf {
        self.0.join(MAKING)
    }

    /// A file without a name, that is gone with who has it open unless it is kept.
    ///
    /// # Errors
    /// From the filesystem.
    pub fn nameless(&self) -> io::Result<File> {
        let mut options = File::options();
        let options = options.read(true).write(true).mode(0o600);
        options.custom_flags(libc::O_TMPFILE).open(&self.0)
    }

    /// Keeps what a machine was saved to, as the template of `identity`; which version of QEMU's it is
    /// of, and what its agent said. Who keeps has the lock.
    ///
    /// # Errors
    /// From the filesystem; nothing of it is left.
    pub fn keep(
        &self,
        identity: &Identity,
        state: &File,
        qemu: &str,
        hello: &Hello,
    ) -> io::Result<()> {
        self.remove(&identity.key);
        let kept = || {
            let sha256 = digest(state)?;
            self.name(state, &self.file(&identity.key, STATE))?;
            let manifest = Manifest {
                about: identity.about.clone(),
                family: identity.family.clone(),
                boot: identity.boot.clone(),
                qemu: qemu.to_owned(),
                // It has its name, which is a change.
                state: Version::of(state)?,
                sha256,
                hello: hello.encode_to_vec(),
            };
            let mut file = self.nameless()?;
            file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
            self.name(&file, &self.file(&identity.key, MANIFEST))
        };
        kept().inspect_err(|_| self.remove(&identity.key))
    }

    /// Gives a file without a name this one.
    fn name(&self, file: &File, name: &Path) -> io::Result<()> {
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        Ok(linkat(AT_FDCWD, &*open, AT_FDCWD, name, follow)?)
    }

    /// Removes what is of no use beside the template of `identity`: what is of another boot of this
    /// machine or an older one of the same, what is half there, and the oldest beyond the bounds.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub fn tidy(&self, identity: &Identity) -> io::Result<()> {
        let mut keys = BTreeSet::new();
        for entry in fs::read_dir(&self.0)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((key, _)) = name.split_once('.') {
                keys.insert(key.to_owned());
            }
        }
        let mut left = Vec::new();
        for key in keys {
            if key == identity.key {
                continue;
            }
            match self.of(&key) {
                Some((manifest, made, bytes)) => {
                    let stale =
                        manifest.boot != identity.boot || manifest.family == identity.family;
                    match stale {
                        true => self.remove(&key),
                        false => left.push((made, bytes, key)),
                    }
                }
                None if self.has_failed(&key) => {
                    let _ = fs::remove_file(self.file(&key, STATE));
                }
                None => self.remove(&key),
            }
        }
        left.sort();
        let mut bytes = 0;
        for (n, (_, size, key)) in left.iter().rev().enumerate() {
            bytes += size;
            // One is to come.
            if n + 1 >= MOST || bytes > MOST_BYTES {
                self.remove(key);
            }
        }
        Ok(())
    }

    /// A template that is whole: what is written of it, when it was made, and how many bytes it has.
    fn of(&self, key: &str) -> Option<(Manifest, SystemTime, u64)> {
        let path = self.file(key, MANIFEST);
        let file = fs::metadata(&path).ok()?;
        let small = file.len() <= MANIFEST_SIZE;
        let manifest = small.then(|| fs::read(&path).ok())??;
        let manifest = serde_json::from_slice(&manifest).ok()?;
        let state = fs::metadata(self.file(key, STATE)).ok()?;
        Some((manifest, file.modified().ok()?, state.blocks() * 512))
    }
}

/// Of what is in the file, holes left out: each piece after its offset.
fn digest(file: &File) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let begin = match lseek(file, at, Whence::SeekData) {
            Err(nix::Error::ENXIO) => break,
            begin => begin?,
        };
        let end = lseek(file, begin, Whence::SeekHole)?;
        digest.update(begin.to_le_bytes());
        at = begin;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let piece = left.min(buffer.len());
            file.read_exact_at(&mut buffer[..piece], at.cast_unsigned())?;
            digest.update(&buffer[..piece]);
            at += piece as i64;
        }
    }
    Ok(hex(&digest.finalize()))
}

#[cfg(test)]
mod tests;
