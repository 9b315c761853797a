// SPDX-License-Identifier: Apache-2.0
//! A VM that runs, for another process image: its processes stay children of this process, and all that
//! the two images share of it goes on where it was.

use super::{CONNECTIONS, Vm};
use crate::boot::Purpose;
use crate::checkpoint::{self, Saving};
use crate::child::Child;
use crate::config::Config;
use crate::console::{self, Console};
use crate::container_sockets::{self, ContainerSockets};
use crate::link;
use crate::localhost::{self, Localhost};
use crate::machine::Machine;
use crate::mirrors::{self, Mirrors};
use crate::network::Where;
use crate::notices::{News, Notices};
use crate::pod::{self, Pod};
use crate::pool::Leash;
use crate::qemu::{self, AGENT_SOCKET, Qemu};
use crate::shape::Shape;
use crate::share::{self, Share};
use crate::sockets::{self, Sockets};
use crate::word::Doom;
use protos::Message;
use protos::guest::{ConfigureResponse, Hello};
use protos::mux::{self, Link, MARK};
use protos::ttrpc::Client;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use task::handover::Kept;
use task::reaper::Reaper;
use task::relay::{self, Relays};
use tokio::sync::watch;

/// The link's stream that is there for as long as it is.
const NOTICES: u32 = 0;
/// So many numbers of streams a shim that has died may have given out that it has not written down.
const SKIPPED: u32 = 4096;

#[derive(Debug, Serialize, Deserialize)]
pub struct Moved {
    machine: qemu::Moved,
    /// The file server's pid.
    files: u32,
    files_said: console::Moved,
    link: Linked,
    mark: Option<[u8; MARK]>,
    /// The number of the last event that was heard.
    heard: u64,
    #[serde(default)]
    is_adopted: bool,
    #[serde(default)]
    restored: bool,
    #[serde(default)]
    saving: Option<checkpoint::Moved>,
    #[serde(default)]
    is_clone: bool,
    patience: Duration,
    share: share::Moved,
    pod: pod::Moved,
    #[serde(default)]
    shape: Shape,
    settings: Config,
    #[serde(default)]
    localhost: Option<localhost::Moved>,
    #[serde(default)]
    relays: Vec<relay::Moved>,
    #[serde(default)]
    sockets: (Vec<PathBuf>, Vec<sockets::Moved>),
    #[serde(default)]
    container_sockets: container_sockets::Moved,
    #[serde(default)]
    mirrors: Vec<mirrors::Moved>,
    hello: Vec<u8>,
    heard_after: Duration,
    dir: PathBuf,
    network: Where,
    joined: bool,
    #[serde(default)]
    leash: Option<i32>,
}

impl Moved {
    /// The directory that it has until somebody else has it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is to who has taken it for `purpose`, and holds it by the fd `leash`.
    pub(super) fn taken(self, purpose: &Purpose<'_>, leash: i32) -> Self {
        Self {
            dir: purpose.dir.clone(),
            network: purpose.network.clone(),
            patience: purpose.config.patience(),
            shape: purpose.shape.clone(),
            settings: purpose.settings.clone(),
            sockets: (purpose.config.sockets.clone(), Vec::new()),
            container_sockets: self
                .container_sockets
                .of(purpose.config.container_sockets.clone()),
            leash: Some(leash),
            ..self
        }
    }
}

/// How the next image speaks with the guest.
#[derive(Debug, Serialize, Deserialize)]
enum Linked {
    /// Over the same pipe.
    Same {
        socket: i32,
        link: mux::Moved,
        /// What has come of a notice that is not whole.
        notices: Vec<u8>,
        /// The stream of calls to the guest, and how many were made.
        calls: (u32, u32),
    },
    /// Over another, in a session that goes on with these streams, and opens others from `next` on.
    Anew { streams: Vec<u32>, next: u32 },
}

/// The link, and who speaks over it.
struct Spoken {
    socket: UnixStream,
    link: Rc<Link>,
    notices: Rc<Notices>,
    calls: u32,
    client: Client,
}

impl Spoken {
    /// Over the pipe of another process image.
    fn on(
        socket: i32,
        link: mux::Moved,
        (begun, heard): (Vec<u8>, u64),
        (calls, made): (u32, u32),
        doom: &Doom,
    ) -> io::Result<Self> {
        let socket = task::sys::adopt(socket)?.into();
        let link = Link::take_over(link);
        link::run(&link, &socket, doom)?;
        let stream = |number| {
            let none = || io::Error::other(format!("stream {number} of the link is gone"));
            link.again(number).ok_or_else(none)
        };
        let notices = Rc::new(Notices::new(stream(NOTICES)?, begun, heard));
        let client = link::client(&link, stream(calls)?, made, doom);
        Ok(Self {
            calls,
            socket,
            notices,
            client,
            link,
        })
    }

    /// Over another, to the guest that has its place at `dir`.
    fn anew(dir: &Path, link: Rc<Link>, heard: u64, doom: &Doom) -> io::Result<Self> {
        let socket = UnixStream::connect(dir.join(AGENT_SOCKET))?;
        link::run(&link, &socket, doom)?;
        let notices = Rc::new(Notices::again(link.first(), heard));
        let stream = link.open();
        let calls = stream.number();
        notices.begin(calls);
        let client = link::client(&link, stream, 0, doom);
        Ok(Self {
            calls,
            socket,
            notices,
            client,
            link,
        })
    }
}

impl Vm {
    /// Describes it for another process image, which its processes stay children of.
    ///
    /// # Errors
    /// If it has ended or is to end, or no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        if self.is_gone() || self.doom.is_sealed() || self.link.is_closed() {
            return Err(io::Error::other("its VM has ended, or is about to"));
        }
        Ok(Moved {
            machine: self.machine.hand_over(kept)?,
            files: self.files.pid,
            files_said: self.files_said.hand_over(kept)?,
            link: match kept.is_record() {
                true => Linked::Anew {
                    streams: self.link.numbers(self.calls),
                    next: self.link.next(),
                },
                false => Linked::Same {
                    socket: kept.keep(&self.socket)?,
                    link: self.link.hand_over(),
                    notices: self.notices.begun(),
                    calls: (self.calls, self.client.made()),
                },
            },
            mark: self.mark.get(),
            heard: self.notices.heard(),
            is_adopted: self.is_adopted,
            restored: self.restored,
            saving: {
                let saving = self.saving.as_ref().map(|it| it.hand_over(kept));
                saving.transpose()?
            },
            is_clone: self.is_clone,
            patience: self.patience,
            share: self.share.hand_over(kept)?,
            pod: self.pod.hand_over(),
            shape: self.shape.clone(),
            settings: self.settings.clone(),
            localhost: self.localhost.hand_over(kept)?,
            relays: self.relays.hand_over(kept)?,
            sockets: self.sockets.hand_over(),
            container_sockets: self.container_sockets.hand_over(kept)?,
            mirrors: self.mirrors.hand_over(),
            hello: self.hello.encode_to_vec(),
            heard_after: self.heard_after,
            dir: self.dir.clone(),
            network: self.network.clone(),
            joined: self.joined.get(),
            leash: self
                .leash
                .as_ref()
                .map(|it| it.hand_over(kept))
                .transpose()?,
        })
    }

    /// Goes on with that of another process image; `tell` as for [`Vm::boot`].
    ///
    /// # Errors
    /// If an fd is not what it is said to be, or its directory is gone.
    pub fn take_over(
        moved: Moved,
        reaper: &Rc<Reaper>,
        tell: impl FnMut(News) -> Result<(), String> + 'static,
    ) -> io::Result<Rc<Self>> {
        let is_anew = matches!(moved.link, Linked::Anew { .. });
        let vm = Self::rebuilt(moved, reaper)?.begin(tell);
        let again = Rc::clone(&vm);
        tokio::task::spawn_local(async move {
            if is_anew {
                again.greeted().await;
            }
            let link = (!is_anew).then_some(&again.link);
            Sockets::go_on(&again, link).await;
            Mirrors::go_on(&again).await;
            if is_anew && let Some(path) = again.network.path() {
                // That of one that was the pool's is another's.
                let own = again.netns();
                let netns = if again.is_from_pool() { path } else { &own };
                localhost::serve_anew(&again, netns).await;
            }
        });
        Ok(vm)
    }

    /// The VM that `moved` describes; nobody watches it yet.
    ///
    /// # Errors
    /// As for [`Vm::take_over`].
    pub(super) fn rebuilt(moved: Moved, reaper: &Rc<Reaper>) -> io::Result<Self> {
        let leash = moved.leash.map(Leash::take_over).transpose()?;
        let child = |pid| match &leash {
            Some(leash) => leash.child(pid),
            None => Child::take_over(pid, reaper),
        };
        let doom = Doom::default();
        let is_anew = matches!(moved.link, Linked::Anew { .. });
        let spoken = match (moved.link, moved.mark) {
            (
                Linked::Same {
                    socket,
                    link,
                    notices,
                    calls,
                },
                _,
            ) => Spoken::on(socket, link, (notices, moved.heard), calls, &doom)?,
            (Linked::Anew { streams, next }, Some(mark)) => {
                let link = Link::adopt(&streams, next.saturating_add(SKIPPED), mark);
                Spoken::anew(&moved.dir, link, moved.heard, &doom)?
            }
            (Linked::Anew { .. }, None) => {
                return Err(io::Error::other("its guest knows no other session"));
            }
        };
        let Spoken {
            socket,
            link,
            notices,
            calls,
            client,
        } = spoken;
        let relays = Relays::new(CONNECTIONS);
        relays.take_over(moved.relays, &link)?;
        let machine = Qemu::take_over(moved.machine, child)?;
        let pod = Pod::take_over(moved.pod, machine.pid());
        Ok(Self {
            machine: Rc::new(machine),
            files: Rc::new(child(moved.files)),
            files_said: Console::take_over(moved.files_said)?,
            socket,
            link,
            notices,
            mark: Cell::new(moved.mark),
            calls,
            client,
            doom,
            saving: moved.saving.map(Saving::take_over).transpose()?,
            is_clone: moved.is_clone,
            is_to_end: Cell::new(false),
            patience: moved.patience,
            share: Share::take_over(&moved.dir, moved.share, Rc::clone(reaper))?,
            pod,
            shape: moved.shape,
            settings: moved.settings,
            localhost: Localhost::take_over(moved.localhost)?,
            relays,
            sockets: Sockets::take_over(moved.sockets),
            container_sockets: ContainerSockets::take_over(moved.container_sockets)?,
            mirrors: Mirrors::take_over(moved.mirrors),
            configured: ConfigureResponse::default(),
            hello: Hello::decode(moved.hello.as_slice()).map_err(io::Error::other)?,
            heard_after: moved.heard_after,
            restored: moved.restored,
            wish: Cell::default(),
            dir: moved.dir,
            network: moved.network,
            joined: Cell::new(moved.joined),
            is_adopted: moved.is_adopted || is_anew,
            leash,
            gone: watch::channel(None).1,
        })
    }

    /// Sees to it that the guest of a shim that has died speaks again, once all of its containers have
    /// been taken over.
    pub async fn greeted(&self) {
        // Streams of what that shim had begun, and nobody goes on with.
        self.link.forget_what_is_left();
        let notices = &self.notices;
        self.in_time("its hello", self.patience, notices.greeted())
            .await;
    }

    /// Waits until no call to the guest is under way.
    pub async fn idle(&self) {
        self.client.idle().await;
    }

    pub fn is_idle(&self) -> bool {
        self.client.is_idle()
    }
}
