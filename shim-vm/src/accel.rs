// SPDX-License-Identifier: Apache-2.0
//! With KVM or without: a device that opens is no proof, so a VM is booted once. That KVM works is
//! remembered until the host boots; that it does not for a while, which grows: it may have been slow.

use crate::boot::DYING;
use crate::config::{Accel, Config};
use crate::image::Image;
use crate::machine::{Begins, Machine, Plan};
use crate::qemu::Qemu;
use crate::{patience, program, remembered, users};
use nix::time::{ClockId, clock_gettime};
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;
use task::aside;
use task::reaper::Reaper;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

const KVM: &str = "/dev/kvm";
/// Where it is remembered: [`WORKS`], or a [`Failure`].
const CACHE: &str = "accel";
const WORKS: &str = "kvm";
/// A guest that works says hello in a fraction of this.
const PROBE: Duration = Duration::from_secs(5);
const PROBE_MEMORY: u64 = 128;
/// Seconds until KVM is tried again where it did not work: the first time, and at most.
const AGAIN: u64 = 60;
const MOST: u64 = 6 * 60 * 60;

/// What a VM runs with, and why.
#[derive(Debug, PartialEq)]
pub struct Chosen {
    pub accel: Accel,
    pub why: String,
}

/// That KVM did not work.
#[derive(Debug, PartialEq)]
struct Failure {
    /// When it is tried again, in seconds since the host booted, and how long that is after this.
    again: u64,
    wait: u64,
    /// On one line.
    why: String,
}

impl Failure {
    /// At `now`, after `before`.
    fn at(now: u64, before: Option<Self>, why: &str) -> Self {
        let wait = before.map_or(AGAIN, |before| (before.wait * 2).min(MOST));
        Self {
            again: now + wait,
            wait,
            why: why.replace('\n', " "),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(3, ' ');
        Some(Self {
            again: words.next()?.parse().ok()?,
            wait: words.next()?.parse().ok()?,
            why: words.next()?.to_owned(),
        })
    }

    fn text(&self) -> String {
        format!("{} {} {}", self.again, self.wait, self.why)
    }
}

/// What the VM will run with.
pub async fn choose(config: &Config, image: &Image, reaper: &Reaper) -> Chosen {
    let chosen = |accel, why: &str| Chosen {
        accel,
        why: why.to_owned(),
    };
    if config.accel != Accel::Auto {
        return chosen(config.accel, "as it is set");
    }
    if let Err(e) = File::options().read(true).write(true).open(KVM) {
        return chosen(Accel::Tcg, &format!("no KVM: {KVM}: {e}"));
    }
    let kernel = image.kernel.clone();
    let kernel = aside::run(move || fs::canonicalize(&kernel).unwrap_or(kernel)).await;
    let about = format!("{} {}", config.qemu.display(), kernel.display());
    let known = remembered::recall(CACHE, &about);
    if known.as_deref() == Some(WORKS) {
        return chosen(Accel::Kvm, "it was tried");
    }
    let (now, before) = (uptime(), known.as_deref().and_then(Failure::parse));
    if let Some(failure) = before.as_ref().filter(|failure| now < failure.again) {
        let (why, left) = (&failure.why, failure.again - now);
        let why = format!("KVM does not work: {why}; it is tried again in {left} s");
        return chosen(Accel::Tcg, &why);
    }
    let dir = Path::new("/run/dunnage").join(format!("probe-{}", std::process::id()));
    let made = crate::place::make(&dir).map_err(|e| format!("{}: {e}", dir.display()));
    let booted = match made {
        Ok(()) => boots(config, image, &dir, reaper).await,
        Err(why) => Err(why),
    };
    let _ = fs::remove_dir_all(&dir);
    match booted {
        Ok(()) => {
            log::info!("KVM was tried: it works");
            remembered::keep(CACHE, &about, WORKS);
            chosen(Accel::Kvm, "it was tried")
        }
        Err(why) => {
            log::warn!("KVM was tried, and does not work: {why}");
            let failure = Failure::at(now, before, &why);
            remembered::keep(CACHE, &about, &failure.text());
            chosen(Accel::Tcg, &format!("KVM does not work: {why}"))
        }
    }
}

/// In seconds.
fn uptime() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| now.tv_sec().unsigned_abs())
}

/// Whether a guest is heard of with KVM.
///
/// # Errors
/// Why it is not.
async fn boots(config: &Config, image: &Image, dir: &Path, reaper: &Reaper) -> Result<(), String> {
    let user = users::take(config.first_user, config.users)?;
    let plan = Plan {
        name: "probe".into(),
        dir: dir.to_owned(),
        image: image.clone(),
        accel: Accel::Kvm,
        memory: PROBE_MEMORY,
        vcpus: 1,
        program: program::find(&config.qemu, reaper).await?,
        files: None,
        taps: Vec::new(),
        netns: None,
        monitor: None,
        begins: Begins::Booted,
    };
    let mut machine = Qemu::prepare(plan, user)?;
    let socket = machine.boot(reaper).await?;
    machine.runs().await?;
    let failed = |e: std::io::Error| format!("the guest's link: {e}");
    let heard = async {
        socket.set_nonblocking(true).map_err(failed)?;
        let mut socket = UnixStream::from_std(socket).map_err(failed)?;
        socket.read_u8().await.map(drop).map_err(failed)
    };
    let heard = tokio::select! {
        biased;
        status = machine.wait() => Err(format!("QEMU ended: {status}")),
        heard = heard => match heard {
            Ok(()) => Ok(()),
            // The link ends with QEMU, and may be heard of first.
            Err(why) => match tokio::time::timeout(DYING, machine.wait()).await {
                Ok(status) => Err(format!("QEMU ended: {status}")),
                Err(_) => Err(why),
            },
        },
        () = patience::over(PROBE, || machine.pid()) => {
            Err(format!("no word of a guest within {} s", PROBE.as_secs()))
        }
    };
    machine.kill();
    machine.wait().await;
    heard.map_err(|why| match machine.last_words() {
        said if said.is_empty() => why,
        said => format!("{why}; it said: {said}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_forgotten_after_a_while_that_grows() {
        let first = Failure::at(1000, None, "a\nb");
        assert_eq!((first.again, &*first.why), (1060, "a b"));
        assert_eq!(Failure::parse(&first.text()), Some(first));
        let mut failure = Failure::at(0, None, "");
        for _ in 0..20 {
            failure = Failure::at(0, Some(failure), "");
        }
        assert_eq!(failure.wait, MOST);
        for text in ["tcg", "", "1 x why", WORKS] {
            assert_eq!(Failure::parse(text), None);
        }
    }
}
