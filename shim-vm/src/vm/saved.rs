// SPDX-License-Identifier: Apache-2.0
//! A VM that was saved with its container: what its next shim must know, and one that goes on as it.

use super::{Vm, clear};
use crate::boot::{self, Purpose, Ready};
use crate::link;
use crate::machine::Begins;
use crate::notices::{News, Notices};
use crate::{clock, place, program};
use protos::Message;
use protos::guest::{ConfigureRequest, ConfigureResponse, Hello};
use protos::mux::{Link, MARK};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::rc::Rc;
use std::time::Duration;
use task::reaper::Reaper;

/// What a guest's next host must know of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Session {
    mark: [u8; MARK],
    /// The number of the last event that was heard.
    heard: u64,
    /// Streams of the link, and the next that is opened.
    streams: Vec<u32>,
    next: u32,
    hello: Vec<u8>,
    /// The number of the first volume in the share, and how many there are.
    pub volumes: (usize, usize),
}

/// What a machine goes on as.
pub struct Saved<'a> {
    pub state: File,
    pub networks: usize,
    pub acpi: bool,
    pub session: &'a Session,
}

impl Vm {
    /// What its next host must know; `None` if there can be none.
    pub fn session(&self) -> Option<Session> {
        Some(Session {
            mark: self.mark.get()?,
            heard: self.notices.heard(),
            streams: self.link.numbers(self.calls),
            next: self.link.next(),
            hello: self.hello.encode_to_vec(),
            volumes: self.share.numbers(),
        })
    }

    /// One that waits to go on as that which was `saved`, with nothing in its share yet; what its guest is
    /// to be told then. `tell` as for [`Vm::boot`].
    ///
    /// # Errors
    /// Why there is none; nothing of it is left.
    pub async fn waiting(
        purpose: &Purpose<'_>,
        saved: Saved<'_>,
        reaper: &Rc<Reaper>,
        tell: impl FnMut(News) -> Result<(), String> + 'static,
    ) -> Result<(Rc<Self>, ConfigureRequest), String> {
        let (dir, network) = (&purpose.dir, &purpose.network);
        place::make(dir).map_err(|e| format!("mkdir {}: {e}", dir.display()))?;
        match Self::of_saved(purpose, saved, reaper).await {
            Ok((vm, told)) => Ok((vm.begin(tell), told)),
            Err(why) => {
                clear(dir, network).await;
                Err(why)
            }
        }
    }

    async fn of_saved(
        purpose: &Purpose<'_>,
        saved: Saved<'_>,
        reaper: &Rc<Reaper>,
    ) -> Result<(Self, ConfigureRequest), String> {
        let Session {
            mark,
            heard,
            streams,
            next,
            hello,
            ..
        } = saved.session;
        let hello = Hello::decode(hello.as_slice()).map_err(|e| format!("its hello: {e}"))?;
        let program = program::find(&purpose.config.qemu, reaper).await?;
        let begins = |networks: usize| match saved.networks {
            had if had == networks => Ok(Begins::Saved {
                state: saved.state.into(),
                acpi: saved.acpi,
            }),
            had => Err(format!(
                "network devices: it is of {had:?}, and here is {networks:?}"
            )),
        };
        let prepared = boot::prepare(purpose.clone(), program, begins, reaper).await?;
        let with = (reaper.as_ref(), purpose.context);
        let (parts, socket, told) = prepared.wait(&purpose.dir, with).await?;
        let link = Link::adopt(streams, *next, *mark);
        link::run(&link, &socket, &parts.doom).map_err(|e| format!("link: {e}"))?;
        let notices = Rc::new(Notices::again(link.first(), *heard));
        let stream = link.open();
        let calls = stream.number();
        notices.begin(calls);
        let client = link::client(&link, stream, 0, &parts.doom);
        let ready = Ready {
            socket,
            link,
            notices,
            calls,
            client,
            mark: Some(*mark),
            hello,
            configured: ConfigureResponse::default(),
            heard_after: Duration::ZERO,
            restored: true,
            wish: None,
        };
        let mut vm = Self::made(parts, ready, purpose);
        vm.is_clone = true;
        Ok((vm, told))
    }

    /// It has stood still: its clock is set.
    pub async fn is_on_time(&self) {
        let set = tokio::time::timeout(self.patience, clock::set(&self.client)).await;
        match set {
            Ok(Ok(())) => {}
            Ok(Err(e)) => log::debug!("the guest's clock: {e}"),
            Err(_) => log::debug!("the guest's clock: no answer"),
        }
    }

    /// Its guest is told what it is from now on.
    ///
    /// # Errors
    /// What of it the guest can't.
    pub async fn becomes(&self, told: ConfigureRequest) -> Result<(), String> {
        let (_, mark) = boot::configure(&self.client, told, true).await?;
        self.mark.set(mark);
        Ok(())
    }
}
