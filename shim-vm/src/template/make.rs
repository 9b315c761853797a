// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2 template`: makes the template of a configuration's VMs, unless it is there.
//!
//! Its machine has nothing of the host's but its kernel and its initial root, and is shut in as every
//! other. All that is made on the way is gone with this process, however it ends: what QEMU saves to is
//! a file without a name until it is whole, and everything else is in a mount that nobody else sees.

use super::wish::BACKGROUND;
use super::{Found, Identity, Store, Subject};
use crate::config::Config;
use crate::image::Image;
use crate::link;
use crate::machine::{Begins, Machine, Plan};
use crate::notices::Notices;
use crate::qemu::Qemu;
use crate::qemu::monitor::Monitor;
use crate::word::Doom;
use crate::{accel, patience, place, program, sys, users};
use nix::mount::{MsFlags, mount};
use protos::guest::Hello;
use protos::mux::Link;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use task::reaper::Reaper;

/// How far one that nobody waits for is behind others (setpriority(2)).
const LAST: i32 = 19;
/// How long QEMU may take to save a machine.
const SAVING: Duration = Duration::from_secs(60);
/// Of the directory that is mounted: an initial root with more in it than its file, and sockets.
const SIZE: &str = "mode=0700,size=1g";

/// Makes it; `words` are settings, as annotations have them, and first that it is for others' sake.
///
/// # Errors
/// Why there is none.
pub fn make(mut words: &[&str]) -> Result<String, String> {
    let in_background = words.first() == Some(&BACKGROUND);
    if in_background {
        words = &words[1..];
        // Without it things are only slower.
        let _ = sys::set_nice(0, LAST);
    }
    task::inherited::keep_from_children().map_err(|e| format!("inherited files: {e}"))?;
    task::rootfs::hide_this_thread().map_err(|e| format!("mount namespace: {e}: is this root?"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    let runtime = runtime.map_err(|e| format!("set up the event loop: {e}"))?;
    runtime.block_on(async {
        let reaper = Reaper::new().map_err(|e| e.to_string())?;
        let config = Config::load()?.with(words)?;
        tokio::select! {
            made = run(config, in_background, &reaper) => made,
            e = reaper.run(&|_, _| {}) => Err(e.to_string()),
        }
    })
}

async fn run(config: Config, in_background: bool, reaper: &Rc<Reaper>) -> Result<String, String> {
    let store = Store::new();
    let at = |e: std::io::Error| format!("{}: {e}", store.making().display());
    place::make_run().map_err(at)?;
    let Some(_lock) = store.lock(!in_background).map_err(at)? else {
        return Ok(String::new());
    };
    let image = Image::find(&config)?;
    let accel = accel::choose(&config, &image, reaper).await.accel;
    let program = program::find(&config.qemu, reaper).await?;
    let subject = Subject::new(&config, image, accel, program);
    let identity = subject.identity()?;
    match store.find(&identity) {
        Found::Ready(kept) => match store.verify(&kept) {
            Ok(()) => return Ok(format!("template      {} is there\n", identity.key)),
            Err(_) => store.remove(&identity.key),
        },
        Found::None { wanted: false } if in_background => return Ok(String::new()),
        Found::None { .. } | Found::Broken(_) => {}
    }
    store.tidy(&identity).map_err(at)?;
    let began = Instant::now();
    let made = save(&store, &config, subject, &identity, reaper).await;
    let bytes = made.inspect_err(|why| store.fail(&identity.key, why))?;
    Ok(format!(
        "template      {} made in {} ms: {} MiB\n",
        identity.key,
        began.elapsed().as_millis(),
        bytes >> 20
    ))
}

/// Boots a machine, saves it, and keeps what came of it; how many bytes that has.
async fn save(
    store: &Store,
    config: &Config,
    subject: Subject,
    identity: &Identity,
    reaper: &Rc<Reaper>,
) -> Result<u64, String> {
    let at = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    let dir = own_directory(store)?;
    let state = store.nameless().map_err(at("a file"))?;
    let name = format!("/proc/self/fd/{}", state.as_raw_fd());
    // QEMU wants one that is open for writing alone.
    let writing = File::options().write(true).open(name);
    let (monitor, theirs) = UnixStream::pair().map_err(at("monitor"))?;
    let plan = Plan {
        name: "template".into(),
        dir,
        image: subject.image,
        accel: subject.accel,
        memory: subject.memory,
        vcpus: subject.vcpus,
        program: subject.program,
        files: None,
        taps: Vec::new(),
        netns: None,
        monitor: Some(theirs.into()),
        begins: Begins::Template(writing.map_err(at("a file"))?.into()),
    };
    let mut machine = Qemu::prepare(plan, users::take(config.first_user, config.users)?)?;
    let socket = machine.boot(reaper).await?;
    let saved = async {
        machine.runs().await?;
        tokio::select! {
            saved = hear_and_save(socket, monitor) => saved,
            status = machine.wait() => Err(format!("QEMU ended: {status}")),
            () = patience::over(config.deadline(subject.accel) + SAVING, || machine.pid()) => {
                Err("it took too long".into())
            }
        }
    };
    let saved = saved.await;
    machine.kill();
    machine.wait().await;
    let (hello, version) = saved.map_err(|why| match machine.last_words() {
        said if said.is_empty() => why,
        said => format!("{why}; it said: {said}"),
    })?;
    let kept = store.keep(identity, &state, &version, &hello);
    kept.map_err(|e| format!("what was saved: {e}"))?;
    let file = state.metadata().map_err(at("a file"))?;
    Ok(std::os::unix::fs::MetadataExt::blocks(&file) * 512)
}

/// Waits for the agent's hello, says nothing to it, and has the machine saved; what it said, and the
/// version of QEMU.
async fn hear_and_save(socket: UnixStream, monitor: UnixStream) -> Result<(Hello, String), String> {
    // Whether it is new enough is known before it has done anything.
    let mut monitor = Monitor::new(monitor).await?;
    let link = Link::host();
    link::run(&link, &socket, &Doom::default()).map_err(|e| format!("link: {e}"))?;
    let notices = Notices::new(link.first(), Vec::new(), 0);
    let hello = notices.hello().await?;
    monitor.save().await?;
    Ok((hello, monitor.version))
}

/// A directory that is this process's alone, and gone with it.
fn own_directory(store: &Store) -> Result<PathBuf, String> {
    let dir = store.making();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("making"), &dir, Some("tmpfs"), flags, Some(SIZE))
        .map_err(|e| format!("mount {}: {e}", dir.display()))?;
    Ok(dir)
}
