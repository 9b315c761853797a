// SPDX-License-Identifier: Apache-2.0
//! When the journal is on disk, for those who must not answer before.

use super::Intake;
use std::fs::File;
use std::rc::Rc;
use task::aside;

impl Intake {
    /// Waits until what was written is on disk, if it has to be. One sync serves all who wait
    /// for it.
    pub async fn synced(self: &Rc<Self>) {
        if !self.is_durable {
            return;
        }
        let wanted = self.last.get();
        let mut on_disk = self.on_disk.subscribe();
        while *on_disk.borrow_and_update() < wanted {
            if !self.is_syncing.replace(true) {
                tokio::task::spawn_local(Rc::clone(self).sync());
            }
            if on_disk.changed().await.is_err() {
                return;
            }
        }
    }

    async fn sync(self: Rc<Self>) {
        let journal = self.journal.clone();
        let sync = move || {
            let (last, files) = {
                let mut journal = journal.lock();
                (journal.last(), journal.take_unsynced())
            };
            // fdatasync(2) takes milliseconds, or for ever; records are appended meanwhile.
            (
                last,
                files.and_then(|files| files.iter().try_for_each(File::sync_data)),
            )
        };
        let (last, synced) = aside::run(sync).await;
        if let Err(e) = synced {
            log::error!("journal: sync: {e}");
        }
        self.is_syncing.set(false);
        self.on_disk.send_replace(last);
    }
}
