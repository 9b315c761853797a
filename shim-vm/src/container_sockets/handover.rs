// SPDX-License-Identifier: Apache-2.0
//! The sockets of a VM's containers, for another process image.

use super::{ContainerSockets, Listening, Place, watch};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use task::handover::Kept;
use tokio::sync::Notify;

/// [`ContainerSockets`], for another process image.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Moved {
    allowed: Vec<PathBuf>,
    channel: Option<i32>,
    next: u32,
    places: BTreeMap<u32, Place>,
    listening: Vec<(Place, i32)>,
}

impl Moved {
    /// The same, with these allowed.
    pub fn of(self, allowed: Vec<PathBuf>) -> Self {
        Self { allowed, ..self }
    }
}

impl ContainerSockets {
    /// Describes them for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<Moved> {
        let channel = self.channel.as_ref();
        let channel = channel.map(|channel| kept.keep(channel.get_ref()));
        let listening = self.listening.borrow();
        let listening = listening.values().map(|listening| {
            let fd = kept.keep(listening.listener.get_ref())?;
            Ok((listening.place.clone(), fd))
        });
        let listening = listening.collect::<io::Result<_>>()?;
        Ok(Moved {
            allowed: self.allowed.clone(),
            channel: channel.transpose()?,
            next: self.next.get(),
            places: self.places.borrow().clone(),
            listening,
        })
    }

    /// Those of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(moved: Moved) -> io::Result<Self> {
        let adopt = |fd| watch(task::sys::adopt(fd)?);
        let listening = moved.listening.into_iter().map(|(place, fd)| {
            let listening = Listening {
                listener: adopt(fd)?,
                accepting: None,
                place,
            };
            Ok((listening.place.host.clone(), listening))
        });
        Ok(Self {
            allowed: moved.allowed,
            channel: moved.channel.map(adopt).transpose()?,
            next: Cell::new(moved.next),
            places: RefCell::new(moved.places),
            heard: Notify::new(),
            listening: RefCell::new(listening.collect::<io::Result<_>>()?),
        })
    }
}
