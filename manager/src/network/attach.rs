// SPDX-License-Identifier: Apache-2.0
//! The helper: a process that makes a container's network, or takes it away, and ends. It may wait for
//! plugins and disks as long as it takes; who started it waits for its end, and for nothing else.

use super::config::List;
use super::plugin::{DEVICE, Runner};
use super::record::{self, Attachment};
use super::{Action, Order, Place, files, netns};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::rc::Rc;
use task::reaper::{ExitStatus, Reaper};

/// The word that makes this program the helper.
pub const COMMAND: &str = "network-helper";
/// The plugin that every network begins with, and its device.
const LOOPBACK: (&str, &str) = ("loopback", "lo");

impl Order {
    /// Reads a command line that is an order.
    pub fn read(mut args: impl Iterator<Item = OsString>) -> Option<Result<Self, String>> {
        let is_one = args.nth(1).is_some_and(|word| word == COMMAND);
        let json = is_one.then(|| args.next().unwrap_or_default())?;
        let order = serde_json::from_slice(json.as_encoded_bytes());
        Some(order.map_err(|e| format!("{COMMAND}: {e}")))
    }

    /// Does what it says.
    ///
    /// # Errors
    /// A text, for whoever wants the network.
    pub fn obey(&self) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default());
        let runtime = runtime.map_err(|e| e.to_string())?;
        runtime.block_on(async {
            let reaper = Reaper::new().map_err(|e| e.to_string())?;
            let all = Rc::clone(&reaper);
            tokio::task::spawn_local(async move { all.run(&|_: u32, _: ExitStatus| ()).await });
            let place = self.place();
            let _lock = lock(&place.dir).map_err(|e| format!("{}: {e}", place.dir.display()))?;
            let work = Work {
                order: self,
                place: &place,
                reaper: &reaper,
            };
            match self.action {
                Action::Attach => work.attach().await,
                Action::Detach => work.detach().await,
            }
        })
    }
}

/// Nobody else works on this network while the lock lives.
fn lock(dir: &Path) -> io::Result<Flock<File>> {
    loop {
        make_dir(dir)?;
        let file = File::open(dir)?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
        // Who had it before may have removed the directory.
        if std::fs::metadata(dir)
            .is_ok_and(|it| lock.metadata().is_ok_and(|own| own.ino() == it.ino()))
        {
            return Ok(lock);
        }
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
}

struct Work<'a> {
    order: &'a Order,
    place: &'a Place,
    reaper: &'a Reaper,
}

impl Work<'_> {
    async fn attach(&self) -> Result<(), String> {
        // Another was quicker.
        if self.place.is_whole() {
            return Ok(());
        }
        // What is left of a boot before, or of a helper that was killed, has an address yet.
        self.undo().await?;
        make_dir(&self.place.dir).map_err(|e| self.failed(&self.place.dir, &e))?;
        let made = self.make().await;
        let Err(e) = made else {
            return Ok(());
        };
        match self.detach().await {
            Ok(()) => Err(e),
            Err(more) => Err(format!("{e}; and it is not undone: {more}")),
        }
    }

    async fn make(&self) -> Result<(), String> {
        let (wish, network) = (&self.order.wish, &self.order.network);
        let list = List::find(&network.config_dirs, &wish.network)?;
        let netns = self.place.netns();
        let runner = self.runner(Some(&netns));
        let kinds = list.types().unwrap_or_default();
        for kind in kinds.iter().chain([&LOOPBACK.0]) {
            runner.find(kind)?;
        }
        if !wish.ports.is_empty() && !list.takes_ports() {
            return Err(format!("-p {}: no plugin of it takes ports", wish.ports[0]));
        }
        let attachment = Attachment {
            wish: wish.clone(),
            list,
            result: None,
            done: 0,
            is_refused: false,
            is_done: false,
        };
        self.reserve(&attachment)?;
        netns::make(&netns).map_err(|e| self.failed(&netns, &e))?;
        let (loopback, device) = LOOPBACK;
        let request = json!({"cniVersion": "0.4.0", "name": "lo", "type": loopback});
        runner.run("ADD", loopback, device, &request).await?;
        self.add(&runner, attachment).await
    }

    /// Runs the plugins one after the other. What each made is noted before the next runs: some need it
    /// to undo their own part.
    async fn add(&self, runner: &Runner<'_>, mut attachment: Attachment) -> Result<(), String> {
        for place in 0..attachment.list.plugins.len() {
            let (list, ports) = (&attachment.list, &attachment.wish.ports);
            let request = list.request(place, ports, attachment.result.as_ref());
            let kind = kind(&request);
            let added = match runner.run("ADD", kind, DEVICE, &request).await {
                Ok(added) => added,
                Err(e) => {
                    attachment.is_refused = true;
                    return self.write(&attachment).and(Err(e));
                }
            };
            let added = added.ok_or_else(|| format!("plugin {kind:?}: ADD: it printed no result"));
            attachment.result = Some(added?);
            attachment.done = place + 1;
            self.write(&attachment)?;
        }
        files::write(self.place, &attachment).map_err(|e| self.failed(&self.place.dir, &e))?;
        attachment.is_done = true;
        self.write(&attachment)
    }

    /// Takes the ports, and notes what will have to be undone.
    fn reserve(&self, attachment: &Attachment) -> Result<(), String> {
        let dir = self.place.record.parent().unwrap_or(Path::new("/"));
        make_dir(dir).map_err(|e| self.failed(dir, &e))?;
        let all = File::open(dir).map_err(|e| self.failed(dir, &e))?;
        let all = Flock::lock(all, FlockArg::LockExclusive);
        let _one_after_the_other = all.map_err(|(_, e)| self.failed(dir, &e))?;
        record::are_free(&attachment.wish.ports, dir, &self.place.record)?;
        self.write(attachment)
    }

    fn write(&self, attachment: &Attachment) -> Result<(), String> {
        let path = &self.place.record;
        attachment.write(path).map_err(|e| self.failed(path, &e))
    }

    /// Takes away all that there is.
    async fn detach(&self) -> Result<(), String> {
        self.undo().await?;
        let dir = &self.place.dir;
        match std::fs::remove_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed(dir, &e)),
            _ => Ok(()),
        }
    }

    /// Asks the plugins to undo what they were asked, then takes away the rest but for the directory.
    async fn undo(&self) -> Result<(), String> {
        let netns = self.place.netns();
        let record = &self.place.record;
        match record::read(record) {
            Ok(attachment) => self.undo_plugins(&attachment, &netns).await?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(self.failed(record, &e)),
        }
        netns::remove(&netns).map_err(|e| self.failed(&netns, &e))?;
        let files = self.place.files().map(|(path, _)| path);
        for path in files.iter().chain([record]) {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.failed(path, &e)),
                _ => {}
            }
        }
        Ok(())
    }

    async fn undo_plugins(&self, attachment: &Attachment, netns: &Path) -> Result<(), String> {
        let (list, ports) = (&attachment.list, &attachment.wish.ports);
        let runner = self.runner(netns::is_there(netns).then_some(netns));
        let result = attachment.result.as_ref();
        let mut failures = Vec::new();
        for place in (0..list.plugins.len()).rev() {
            let request = list.request(place, ports, result);
            let undone = runner.run("DEL", kind(&request), DEVICE, &request).await;
            // The others' part is undone all the same; and one that refused to do it may refuse this, too.
            failures.extend(undone.err().filter(|_| attachment.must_undo(place)));
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(failures.join("; ")),
        }
    }

    fn runner<'a>(&'a self, netns: Option<&'a Path>) -> Runner<'a> {
        Runner {
            reaper: self.reaper,
            dirs: &self.order.network.plugin_dirs,
            container: &self.order.wish.key,
            netns,
        }
    }

    fn failed(&self, path: &Path, e: &dyn std::fmt::Display) -> String {
        format!("{}: {e}", path.display())
    }
}

fn kind(request: &Value) -> &str {
    request["type"].as_str().unwrap_or_default()
}
