// SPDX-License-Identifier: Apache-2.0
//! A machine with a container in it that is saved as it stands, or goes on as one that was.
//!
//! It stands still from the first word on, so that nothing changes of what is written, and goes on when it
//! is told to. All of it is one stream, memory first; memory that is zero takes no room.

use super::line::{self, SAVED};
use super::monitor::Monitor;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::json;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use tokio::io::Interest;

impl Monitor {
    /// The machine stands still.
    ///
    /// # Errors
    /// QEMU's.
    pub async fn stop(&mut self) -> Result<(), String> {
        self.ask("stop", json!({})).await.map(drop)
    }

    /// It goes on.
    ///
    /// # Errors
    /// QEMU's.
    pub async fn go_on(&mut self) -> Result<(), String> {
        self.ask("cont", json!({})).await.map(drop)
    }

    /// Saves a machine that stands still to `file`, which is open for writing alone, unless `cancelled` comes
    /// first.
    ///
    /// # Errors
    /// QEMU's, or what `cancelled` says; the machine stands still as before.
    pub async fn save_to(
        &mut self,
        file: BorrowedFd<'_>,
        cancelled: impl Future<Output = String>,
    ) -> Result<(), String> {
        self.give(file).await?;
        let saved = self.save_given(cancelled).await;
        let removed = self.ask("remove-fd", json!({"fdset-id": SAVED})).await;
        saved.and(removed.map(drop))
    }

    async fn save_given(&mut self, cancelled: impl Future<Output = String>) -> Result<(), String> {
        self.migrates_as_a_stream().await?;
        // As fast as it goes.
        let parameters = json!({"max-bandwidth": 1_u64 << 40});
        self.ask("migrate-set-parameters", parameters).await?;
        let uri = json!({"uri": format!("file:/dev/fdset/{SAVED}")});
        self.ask("migrate", uri).await?;
        let why = tokio::select! {
            saved = self.migrated() => return saved,
            why = cancelled => why,
        };
        self.ask("migrate_cancel", json!({})).await?;
        // It may be saved by now.
        let _ = self.migrated().await;
        Err(why)
    }

    /// Has a machine that waits go on as the one that was saved; it stands still, as that did.
    ///
    /// # Errors
    /// QEMU's; then it ends.
    pub async fn restore(&mut self) -> Result<(), String> {
        self.migrates_as_a_stream().await?;
        let uri = json!({"uri": line::saved_to()});
        self.ask("migrate-incoming", uri).await?;
        self.migrated().await
    }

    /// It saves and goes on as a stream, and tells how far it is: a machine that began as a template would do as that
    /// was saved, memory by its places in the file.
    async fn migrates_as_a_stream(&mut self) -> Result<(), String> {
        let capabilities = json!({"capabilities": [
            {"capability": "events", "state": true},
            {"capability": "mapped-ram", "state": false},
        ]});
        self.ask("migrate-set-capabilities", capabilities)
            .await
            .map(drop)
    }

    /// Gives QEMU a file.
    async fn give(&mut self, file: BorrowedFd<'_>) -> Result<(), String> {
        let request = json!({"execute": "add-fd", "arguments": {"fdset-id": SAVED}}).to_string();
        let fds = [file.as_raw_fd()];
        let socket = self.stream.get_ref();
        let sent = socket.async_io(Interest::WRITABLE, || {
            send(socket.as_raw_fd(), &request, &fds)
        });
        sent.await.map_err(|e| format!("add-fd: {e}"))?;
        self.answer("add-fd").await.map(drop)
    }
}

fn send(socket: RawFd, text: &str, fds: &[RawFd]) -> io::Result<()> {
    let bytes = [IoSlice::new(text.as_bytes())];
    let with = [ControlMessage::ScmRights(fds)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let sent = sendmsg::<()>(socket, &bytes, &with, flags, None)?;
    match sent == text.len() {
        true => Ok(()),
        false => Err(io::Error::other("QEMU does not listen")),
    }
}
