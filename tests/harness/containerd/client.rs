// SPDX-License-Identifier: Apache-2.0
//! What a test asks of its containerd through `ctr`: the commands an operator types.

use super::ctr::{Ctr, Output};
use super::{Containerd, IMAGE, SHIM};
use std::fs;
use std::process::{Command, Stdio};

/// A line of `ctr task ls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub id: String,
    pub pid: i32,
    pub status: String,
}

/// What `ctr` calls the image of a task that is saved.
const SAVED: &str = "dunnage.test/checkpoint:1";

impl Containerd {
    /// `ctr --namespace N ARGS`, not yet started.
    pub fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = self.command("ctr");
        command
            .args(["--address", &self.address(), "--namespace", &self.namespace])
            .args(args);
        command
    }

    /// Runs ctr to its end.
    #[track_caller]
    pub fn ctr(&self, args: &[&str]) -> Output {
        Ctr::spawn(self.ctr_command(args), Stdio::null()).finish()
    }

    /// Starts ctr; its stdin is a pipe that the test holds.
    pub fn spawn(&self, args: &[&str]) -> Ctr {
        Ctr::spawn(self.ctr_command(args), Stdio::piped())
    }

    /// `ctr run OPTIONS IMAGE ID WORDS`. The container sees the test's [`Fifo`]s in /share.
    pub fn run_command(&self, options: &[&str], id: &str, words: &[&str]) -> Command {
        self.note(id);
        let fifos = self.dir.join("fifo");
        let share = self.dir.join("share");
        let mount = format!(
            "type=bind,src={},dst=/share,options=rbind:rw",
            share.display()
        );
        let mut command = self.ctr_command(&["run", "--mount", &mount]);
        command
            .arg("--fifo-dir")
            .arg(fifos)
            .args(options)
            .args([IMAGE, id])
            .args(words);
        command
    }

    /// Runs a container to its end; its stdin is empty.
    #[track_caller]
    pub fn run(&self, options: &[&str], id: &str, words: &[&str]) -> Output {
        Ctr::spawn(self.run_command(options, id, words), Stdio::null()).finish()
    }

    /// Starts a container in the foreground; ctr's stdin is a pipe that the test holds.
    pub fn spawn_run(&self, options: &[&str], id: &str, words: &[&str]) -> Ctr {
        Ctr::spawn(self.run_command(options, id, words), Stdio::piped())
    }

    /// `ctr run -d`; the container's stdin stays open.
    #[track_caller]
    pub fn run_detached(&self, options: &[&str], id: &str, words: &[&str]) -> Task {
        let options = [&["-d"], options].concat();
        self.spawn_run(&options, id, words).finish().ok();
        self.task(id)
            .unwrap_or_else(|| panic!("no task {id} after `ctr run -d`"))
    }

    /// A container that says when it is up, and that SIGTERM ends with exit code 6.
    #[track_caller]
    pub fn run_service(&self, options: &[&str], id: &str) -> Task {
        let up = self.fifo(&format!("{id}.up"));
        let script = format!(
            "trap 'exit 6' TERM; echo up > /share/{id}.up; while :; do sleep 1000 & wait $!; done"
        );
        let task = self.run_detached(options, id, &["sh", "-c", &script]);
        assert_eq!(up.line(), "up");
        task
    }

    /// `ctr containers checkpoint` of the task `id`, which is deleted, and `ctr containers restore` as `new`.
    #[track_caller]
    pub fn save_and_restore(&self, id: &str, new: &str) {
        let words = ["containers", "checkpoint", "--rw", "--image", "--task"];
        self.ctr(&[&words[..], &[id, SAVED]].concat()).ok();
        self.ctr(&["task", "delete", "--force", id]).ok();
        self.ctr(&["containers", "rm", id]).ok();
        self.note(new);
        let words = ["containers", "restore", "--rw", "--live", new, SAVED];
        self.spawn(&words).finish().ok();
        assert_eq!(self.status(new), "RUNNING");
        // Where containerd unpacked the image, for it to stay.
        let tmp = fs::read_dir(self.dir().join("tmp")).expect("tmp");
        for entry in tmp.map(|entry| entry.expect("tmp")) {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("ctrd-checkpoint") {
                fs::remove_dir_all(entry.path()).expect("containerd's leavings");
            }
        }
    }

    /// `ctr task exec ID WORDS` to its end.
    #[track_caller]
    pub fn exec(&self, id: &str, exec: &str, words: &[&str]) -> Output {
        let fifos = self.dir.join("fifo");
        let fifos = fifos.to_string_lossy();
        let args = ["task", "exec", "--fifo-dir", &fifos, "--exec-id", exec, id];
        self.ctr(&[&args, words].concat())
    }

    /// Starts `ctr task exec ID WORDS`; ctr's stdin is a pipe that the test holds.
    pub fn spawn_exec(&self, id: &str, exec: &str, words: &[&str]) -> Ctr {
        let fifos = self.dir.join("fifo");
        let fifos = fifos.to_string_lossy();
        let args = ["task", "exec", "--fifo-dir", &fifos, "--exec-id", exec, id];
        self.spawn(&[&args, words].concat())
    }

    /// Has every shim of this containerd become the binary in the shim's place.
    #[track_caller]
    pub fn upgrade_shims(&self) -> Output {
        let mut command = Command::new(self.dir.join("bin").join(SHIM));
        command.args(["-namespace", &self.namespace, "upgrade"]);
        Ctr::spawn(command, Stdio::null()).finish()
    }

    /// `ctr task exec -d`: an exec that runs on.
    #[track_caller]
    pub fn exec_detached(&self, id: &str, exec: &str, words: &[&str]) {
        let fifos = self.dir.join("fifo");
        let fifos = fifos.to_string_lossy();
        let args = [
            "task",
            "exec",
            "-d",
            "--fifo-dir",
            &fifos,
            "--exec-id",
            exec,
            id,
        ];
        self.spawn(&[&args, words].concat()).finish().ok();
    }

    #[track_caller]
    pub fn kill_task(&self, signal: &str, id: &str) {
        self.ctr(&["task", "kill", "--signal", signal, id]).ok();
    }

    /// `ctr task ls`.
    #[track_caller]
    pub fn tasks(&self) -> Vec<Task> {
        let output = self.ctr(&["task", "ls"]).ok();
        let task = |line: &str| {
            let mut words = line.split_whitespace().map(str::to_owned);
            let (id, pid) = (words.next()?, words.next()?.parse().ok()?);
            Some(Task {
                id,
                pid,
                status: words.next()?,
            })
        };
        let lines = output.stdout.lines().skip(1);
        lines
            .map(|line| task(line).unwrap_or_else(|| panic!("line of task ls: {line}")))
            .collect()
    }

    #[track_caller]
    pub fn task(&self, id: &str) -> Option<Task> {
        self.tasks().into_iter().find(|task| task.id == id)
    }

    /// The status that `ctr task ls` shows; `-` if the task is not in it.
    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        self.task(id)
            .map_or_else(|| "-".to_owned(), |task| task.status)
    }

    /// `ctr containers ls -q`.
    #[track_caller]
    pub fn containers(&self) -> Vec<String> {
        let output = self.ctr(&["containers", "ls", "-q"]).ok();
        output.stdout.lines().map(str::to_owned).collect()
    }
}
