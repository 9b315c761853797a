//! `containerd-shim-vm-v2 check`: whether this host can run VMs, with what, and how long one takes
//! to boot.

use crate::accel;
use crate::config::{Accel, Config};
use crate::image::Image;
use crate::share;
use crate::vm::{Purpose, Vm};
use protos::guest::ConfigureRequest;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use task::reaper::Reaper;

/// Boots a VM as a container would, ends it, and tells about it.
///
/// # Errors
/// What is missing, or does not work.
pub fn check() -> Result<String, String> {
    share::own_mounts().map_err(|e| format!("mount namespace: {e}: is this root?"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    let runtime = runtime.map_err(|e| format!("set up the event loop: {e}"))?;
    runtime.block_on(async {
        let reaper = Reaper::new().map_err(|e| e.to_string())?;
        tokio::select! {
            told = boot(&reaper) => told,
            e = reaper.run(|_, _| {}) => Err(e.to_string()),
        }
    })
}

async fn boot(reaper: &std::rc::Rc<Reaper>) -> Result<String, String> {
    let config = Config::load()?;
    let image = Image::find(&config)?;
    let accel = accel::choose(&config, &image, reaper).await;
    let (kernel, memory, vcpus) = (image.kernel.clone(), config.memory, config.vcpus);
    let purpose = Purpose {
        name: "check".into(),
        dir: PathBuf::from(format!("/run/dunnage/check-{}", std::process::id())),
        config,
        image,
        accel,
        netns: None,
        guest: ConfigureRequest {
            hostname: "check".into(),
            ..Default::default()
        },
    };
    let start = Instant::now();
    let vm = Vm::boot(purpose, reaper, |_| {}).await?;
    let ready = start.elapsed();
    let hello = vm.hello.clone();
    let heard = vm.heard_after;
    let stopping = Instant::now();
    vm.power_off().await;
    let stopped = stopping.elapsed();
    let accel = match accel {
        Accel::Kvm => "kvm",
        Accel::Tcg | Accel::Auto => "tcg: no KVM that works, so this is slow",
    };
    let in_guest = Duration::from_millis(hello.uptime_ms);
    Ok([
        format!("accelerator  {accel}"),
        format!("machine      {memory} MiB, {vcpus} processors"),
        format!("kernel       {} ({})", hello.kernel, kernel.display()),
        format!("agent        {}", hello.agent),
        format!(
            "hello        {} ms after the start of QEMU",
            heard.as_millis()
        ),
        format!(
            "             of it {} ms in the guest",
            in_guest.as_millis()
        ),
        format!("ready        {} ms, with its files", ready.as_millis()),
        format!("end          {} ms", stopped.as_millis()),
        String::new(),
    ]
    .join("\n"))
}
