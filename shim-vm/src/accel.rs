//! With KVM or without: a device that opens is no proof, so a VM is booted once, and what came of
//! it is remembered until the host boots.

use crate::config::{Accel, Config};
use crate::image::Image;
use crate::machine::{Machine, Plan};
use crate::qemu::Qemu;
use crate::{program, remembered, users};
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;
use task::aside;
use task::reaper::Reaper;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

const KVM: &str = "/dev/kvm";
/// Where `kvm` or `tcg` is remembered.
const CACHE: &str = "accel";
/// A guest that works says hello in a fraction of this.
const PROBE: Duration = Duration::from_secs(5);
const PROBE_MEMORY: u64 = 128;

/// What the VM will run with.
pub async fn choose(config: &Config, image: &Image, reaper: &Reaper) -> Accel {
    if config.accel != Accel::Auto {
        return config.accel;
    }
    if File::options().read(true).write(true).open(KVM).is_err() {
        return Accel::Tcg;
    }
    let kernel = image.kernel.clone();
    let kernel = aside::run(move || fs::canonicalize(&kernel).unwrap_or(kernel)).await;
    let about = format!("{} {}", config.qemu.display(), kernel.display());
    match remembered::recall(CACHE, &about).as_deref() {
        Some("kvm") => return Accel::Kvm,
        Some("tcg") => return Accel::Tcg,
        _ => {}
    }
    let dir = Path::new("/run/dunnage").join(format!("probe-{}", std::process::id()));
    let works = crate::place::make(&dir).is_ok() && boots(config, image, &dir, reaper).await;
    let _ = fs::remove_dir_all(&dir);
    let (accel, name) = if works {
        (Accel::Kvm, "kvm")
    } else {
        (Accel::Tcg, "tcg")
    };
    log::info!("KVM was tried once: {name} it is");
    remembered::keep(CACHE, &about, name);
    accel
}

/// Whether a guest is heard of with KVM.
async fn boots(config: &Config, image: &Image, dir: &Path, reaper: &Reaper) -> bool {
    let probe = async {
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
        };
        let mut machine = Qemu::prepare(plan, user)?;
        let socket = machine.boot(reaper).await?;
        machine.runs().await?;
        let heard = async {
            socket.set_nonblocking(true)?;
            UnixStream::from_std(socket)?.read_u8().await
        };
        let heard = tokio::select! {
            heard = heard => heard.is_ok(),
            _ = machine.wait() => false,
            () = tokio::time::sleep(PROBE) => false,
        };
        machine.kill();
        machine.wait().await;
        Ok::<bool, String>(heard)
    };
    probe.await.unwrap_or_else(|why| {
        log::warn!("KVM probe: {why}");
        false
    })
}
