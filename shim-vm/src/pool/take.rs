// SPDX-License-Identifier: Apache-2.0
//! Taking a VM of the pool's, as the shim does that wants one.

use super::{Answer, Leash, Request, key, place_of};
use crate::boot::Purpose;
use crate::rights;
use crate::vm::Moved;
use crate::{network, patience, place, program};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use task::aside;
use task::reaper::Reaper;
use tokio::io::Interest;

/// How long one in store may take to answer, without what it waits for a processor that others have; and
/// all of them together.
const ANSWER: Duration = Duration::from_secs(1);
const ALL: Duration = Duration::from_secs(6);
/// How many files a VM may come with.
const FILES: usize = rights::MOST_FILES;

/// A VM that was in store.
pub struct Offered {
    pub vm: Moved,
    /// Of [`Leash`]; whoever has the VM takes it over by this number.
    leash: OwnedFd,
}

/// One that is as `purpose` wants it; `None`, and a line in the log, if there is none.
pub async fn take(purpose: &Purpose<'_>, reaper: &Rc<Reaper>) -> Option<Offered> {
    let config = &purpose.config;
    // Who wants to see its guest's boot wants one.
    if !config.pool.is_on() || config.debug_console {
        return None;
    }
    let found = tokio::select! {
        found = tokio::time::timeout(ALL, look(purpose, reaper)) => found,
        _ = purpose.context.cancelled() => return None,
    };
    let why = match found {
        Ok(Ok(offered)) => return Some(offered),
        Ok(Err(why)) => why,
        Err(_) => format!("none answered within {} s", ALL.as_secs()),
    };
    log::info!("no VM of the pool's, one is booted: {why}");
    None
}

async fn look(purpose: &Purpose<'_>, reaper: &Rc<Reaper>) -> Result<Offered, String> {
    let wanted = purpose.network.clone();
    let fits = aside::alone(move || network::fits_one(&wanted)).await;
    if !fits.map_err(|e| e.to_string())? {
        return Err("each has one network device".into());
    }
    let (config, image, accel) = (purpose.config.clone(), purpose.image.clone(), purpose.accel);
    let program = program::find(&config.qemu, reaper).await?;
    let sockets = aside::run(move || {
        let kind = key::sockets(None, &config, &image, accel, &program)?;
        match fs::read_dir(kind) {
            Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    });
    let sockets: Vec<PathBuf> = sockets.await.map_err(|e| e.to_string())?;
    let pool = &purpose.config.pool.directory;
    let mut why = "none of its kind is in store".to_owned();
    for socket in sockets {
        match ask(&socket, pool).await {
            Ok(offered) => return Ok(offered),
            Err(e) => why = format!("{}: {e}", socket.display()),
        }
    }
    Err(why)
}

/// Asks the spare at `socket`.
async fn ask(socket: &Path, pool: &Path) -> io::Result<Offered> {
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let spare = rights::connect(socket)?;
    let holder = Leash::new(spare.try_clone()?)?.holder();
    let mut numbers = reserved()?;
    let request = Request {
        numbers: numbers.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    rights::send(spare.as_fd(), &serde_json::to_vec(&request)?, &[])?;
    let spare = task::sys::watch(spare, Interest::READABLE)?;
    tokio::select! {
        ready = spare.readable() => drop(ready?),
        () = patience::over(ANSWER, || holder) => return Err(io::Error::other("no answer")),
    }
    let (said, files) = rights::receive(spare.as_fd())?;
    if said.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let answer: Answer = serde_json::from_slice(&said).map_err(|e| bad(e.to_string()))?;
    let place = place_of(pool, holder);
    if answer.vm.dir() != place {
        let dir = answer.vm.dir().display();
        return Err(bad(format!("a VM at {dir}, not {}", place.display())));
    }
    if files.is_empty() || files.len() > numbers.len() {
        return Err(bad(format!("a VM with {} files", files.len())));
    }
    for (file, number) in files.iter().zip(&mut numbers) {
        nix::unistd::dup3(file, number, nix::fcntl::OFlag::O_CLOEXEC)?;
    }
    // They are the VM's from now on, which knows them by number.
    for number in numbers.drain(..files.len()) {
        let _ = number.into_raw_fd();
    }
    Ok(Offered {
        vm: answer.vm,
        leash: spare.into_inner(),
    })
}

/// Numbers that nobody else gets.
fn reserved() -> io::Result<Vec<OwnedFd>> {
    let nothing = File::open("/dev/null")?;
    let each = (0..FILES).map(|_| nothing.as_fd().try_clone_to_owned());
    each.collect()
}

impl Offered {
    /// Gives it the place `dir`; its share is mounted there in a namespace that it brings.
    ///
    /// # Errors
    /// If it can't be moved there.
    pub async fn move_to(&self, dir: &Path) -> io::Result<()> {
        let (from, to) = (self.vm.dir().to_owned(), dir.to_owned());
        aside::run(move || place::move_to(&from, &to)).await
    }

    /// Its description, and the number of its leash.
    pub fn into_parts(self) -> (Moved, i32) {
        (self.vm, self.leash.into_raw_fd())
    }
}
