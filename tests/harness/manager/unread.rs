// SPDX-License-Identifier: Apache-2.0
//! A daemon whose stderr nobody reads.

use super::Manager;
use nix::fcntl::{FcntlArg, fcntl};
use std::io::{self, Write};

impl Manager {
    /// Starts the daemon again, with a stderr that is full and that nobody reads; what it is read
    /// from.
    pub fn restart_unread(&mut self) -> io::PipeReader {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let size = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).expect("its size");
        let filling = vec![b'\n'; size as usize];
        writer.write_all(&filling).expect("it is empty");
        self.process = Some(self.spawn_daemon(&[], writer.into()));
        self.until("it serves", |it| {
            (it.dunnage(&["version"]).code == 0).then_some(())
        });
        reader
    }
}
