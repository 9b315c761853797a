// SPDX-License-Identifier: Apache-2.0
//! The Guest service: what the host asks of the machine itself.

use crate::boot::{self, BUNDLES};
use crate::connections::Listeners;
use crate::layers::Layers;
use crate::roots::{self, Leaving};
use crate::tool::Tools;
use crate::{connections, entropy, forget, late, mirror, network, pids};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};
use protos::guest::{
    ConfigureRequest, ConfigureResponse, DialRequest, Empty, ForgetRequest, GetTimeRequest,
    ListenRequest, MirrorRequest, PowerOffRequest, PutBundleRequest, PutBundleResponse, RunRequest,
    RunResponse, StepTimeRequest, TimeResponse,
};
use protos::mux::Link;
use protos::ttrpc::{Answer, Context, Request, Service};
use protos::{Code, Status, Timestamp};
use std::fs;
use std::future::Future;
use std::io::ErrorKind;
use std::path::{Component, Path};
use std::pin::Pin;
use std::rc::Rc;
use task::aside;
use task::reaper::Reaper;
use task::stdio::Parked;
use tokio::sync::Notify;

type Done<T> = Result<T, Status>;

const CLOCK: ClockId = ClockId::CLOCK_REALTIME;

pub struct Guest {
    power_off: Notify,
    leaving: Rc<Leaving>,
    layers: Rc<Layers>,
    link: Rc<Link>,
    parked: Rc<Parked>,
    listeners: Listeners,
    tools: Tools,
}

impl Guest {
    pub fn new(
        leaving: Rc<Leaving>,
        layers: Rc<Layers>,
        link: Rc<Link>,
        parked: Rc<Parked>,
        reaper: Rc<Reaper>,
    ) -> Rc<Self> {
        let tools = Tools::new(reaper, Rc::clone(&parked));
        Rc::new(Self {
            power_off: Notify::new(),
            leaving,
            layers,
            link,
            parked,
            listeners: Listeners::default(),
            tools,
        })
    }

    /// Waits until the host wants the VM to end.
    pub async fn powered_off(&self) {
        self.power_off.notified().await;
    }
}

impl protos::api::guest::Guest for Guest {
    type Error = Status;

    // Mounting and looking into volumes wait for the host, and it for its disks.
    async fn configure(
        self: &Rc<Self>,
        request: ConfigureRequest,
        _: &Context,
    ) -> Done<ConfigureResponse> {
        if !request.mark.is_empty() {
            let mark = request.mark.as_slice().try_into();
            self.link
                .set_mark(mark.map_err(|_| failed("a mark of another length".into()))?);
        }
        let shares_pids = request.shared_pids;
        aside::beside(move || set_up(request)).await?;
        let shared_pids = match shares_pids {
            true => aside::alone(pids::make).await,
            false => Ok(0),
        };
        let shared_pids = shared_pids.map_err(|e| failed(format!("a pid namespace: {e}")))?;
        Ok(ConfigureResponse { shared_pids })
    }

    async fn put_bundle(
        self: &Rc<Self>,
        mut request: PutBundleRequest,
        _: &Context,
    ) -> Done<PutBundleResponse> {
        let id = request.id.clone();
        if id.is_empty() || id.contains('/') || id.starts_with('.') {
            return Err(failed(format!("id {id:?} names no directory")));
        }
        self.leaving.stays(&id).await;
        let layers = std::mem::take(&mut request.root);
        let request = aside::beside(move || show(&request).map(|()| request)).await?;
        if !layers.is_empty() {
            let mounted = self.layers.mount(&id, layers).await;
            mounted.map_err(|e| failed(format!("failed to mount rootfs component: {e}")))?;
        }
        aside::beside(move || write_bundle(&request)).await
    }

    async fn dial(self: &Rc<Self>, request: DialRequest, _: &Context) -> Done<Empty> {
        connections::dial(&self.parked, &request).await?;
        Ok(Empty {})
    }

    async fn listen(self: &Rc<Self>, request: ListenRequest, _: &Context) -> Done<Empty> {
        self.listeners.listen(&self.parked, &request)?;
        Ok(Empty {})
    }

    async fn run(self: &Rc<Self>, request: RunRequest, _: &Context) -> Done<RunResponse> {
        let status = self.tools.run(&request).await?;
        Ok(RunResponse { status })
    }

    // It waits for the host.
    async fn mirror(self: &Rc<Self>, request: MirrorRequest, _: &Context) -> Done<Empty> {
        let copied = aside::beside(move || mirror::mirror(&request)).await;
        copied.map_err(|e| failed(format!("copy of a volume: {e}")))?;
        Ok(Empty {})
    }

    // It waits for the host.
    async fn forget(self: &Rc<Self>, request: ForgetRequest, _: &Context) -> Done<Empty> {
        // A container that was not made may have a root filesystem.
        for name in request.names.iter().filter(|name| !name.contains('/')) {
            self.layers.unmount(name).await;
        }
        let forgotten = aside::beside(move || forget::forget(&request)).await;
        forgotten.map_err(|e| failed(format!("forget: {e}")))?;
        Ok(Empty {})
    }

    async fn get_time(self: &Rc<Self>, _: GetTimeRequest, _: &Context) -> Done<TimeResponse> {
        time()
    }

    async fn step_time(self: &Rc<Self>, request: StepTimeRequest, _: &Context) -> Done<Empty> {
        step_time(request.nanos).map(|()| Empty {})
    }

    async fn power_off(self: &Rc<Self>, _: PowerOffRequest, _: &Context) -> Done<Empty> {
        self.power_off.notify_one();
        Ok(Empty {})
    }
}

impl Service for Guest {
    fn call(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
        protos::api::guest::serve(self, request)
    }
}

/// Makes the machine what the host wants it to be.
fn set_up(mut request: ConfigureRequest) -> Done<()> {
    if request.debug {
        log::set_max_level(log::LevelFilter::Debug);
    }
    let limited = boot::limit(request.open_files, request.locked_memory);
    limited.map_err(|e| failed(format!("limits: {e}")))?;
    if !request.seed.is_empty() {
        entropy::add(&request.seed).map_err(|e| failed(format!("random seed: {e}")))?;
    }
    if request.restored {
        late::begin_anew().map_err(failed)?;
        network::begin_anew(&mut request.interfaces).map_err(failed)?;
    }
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname)
            .map_err(|e| failed(format!("hostname {:?}: {e}", request.hostname)))?;
    }
    if !request.share.is_empty() {
        boot::mount_share(&request.share)
            .map_err(|e| failed(format!("mount the share {:?}: {e}", request.share)))?;
    }
    if !request.interfaces.is_empty() {
        boot::load("virtio_net").map_err(failed)?;
    }
    network::apply(&request.interfaces, &request.routes, &request.neighbours).map_err(failed)?;
    for (name, value) in &request.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(failed(format!("sysctl {name}: no name of one")));
        }
        fs::write(&path, value).map_err(|e| failed(format!("sysctl {name}={value}: {e}")))?;
    }
    Ok(())
}

/// Makes what a bundle refers to, and has the kernel mount it.
fn show(request: &PutBundleRequest) -> Done<()> {
    let id = &request.id;
    for memory in &request.shared_memory {
        boot::share_memory(&memory.name, memory.size)
            .map_err(|e| failed(format!("shared memory {:?}: {e}", memory.name)))?;
    }
    let root = protos::places::rootfs(id);
    for mount in request.volumes.iter().chain([&root]) {
        match roots::show(mount) {
            // A root filesystem that is made of images alone.
            Err(e) if e.kind() == ErrorKind::NotFound && *mount == root => {}
            Err(e) => log::warn!("{id}: {mount}: {e}"),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn write_bundle(request: &PutBundleRequest) -> Done<PutBundleResponse> {
    let dir = Path::new(BUNDLES).join(&request.id);
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("config.json"), &request.config)
    };
    write().map_err(|e| failed(format!("bundle {}: {e}", dir.display())))?;
    Ok(PutBundleResponse {
        bundle: dir.to_string_lossy().into_owned(),
    })
}

fn failed(text: String) -> Status {
    Status::new(Code::Unknown, text)
}

fn time() -> Result<TimeResponse, Status> {
    let now = clock_gettime(CLOCK).map_err(|e| failed(format!("read the clock: {e}")))?;
    Ok(TimeResponse {
        time: Some(Timestamp {
            seconds: now.tv_sec(),
            nanos: i32::try_from(now.tv_nsec()).unwrap_or_default(),
        }),
    })
}

fn step_time(nanos: i64) -> Result<(), Status> {
    let step = |now| clock_settime(CLOCK, now + TimeSpec::nanoseconds(nanos));
    let stepped = clock_gettime(CLOCK).and_then(step);
    stepped.map_err(|e| failed(format!("step the clock by {nanos} ns: {e}")))
}
