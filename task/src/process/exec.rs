//! What is done to an exec process: add, start, kill, delete.

use super::{Exit, Process, ProcessId};
use crate::aside;
use crate::bundle::write_private;
use crate::container::Container;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::foreign::read_made;
use crate::handover::{self, Kept};
use crate::json;
use crate::reaper::Reaper;
use crate::runtime::{Console, Failure};
use crate::service::Engine;
use crate::state::{Request, State};
use crate::stdio::{self, Ends, Io, Paths, check_lengths};
use crate::sys;
use nix::errno::Errno;
use protos::events::{TaskExecAdded, TaskExecStarted};
use protos::ttrpc::Context;
use serde_json::Value;
use std::cell::RefCell;
use std::fs;
use std::io;
use std::rc::Rc;

const FAILED: &str = "OCI runtime exec failed";
const SIGKILL: u32 = 9;
/// The field of an OCI process that the request has its own word for.
const TERMINAL: &str = "terminal";
/// What the execs of a container may take together, and what one takes beside its texts, in bytes:
/// some 8,000 of them.
const MOST: usize = 8 << 20;
const EXEC: usize = 1 << 10;

/// A further process of a container, and what it will run.
pub struct Exec {
    pub process: Rc<Process>,
    /// The OCI process as JSON; taken when it is started.
    spec: RefCell<Vec<u8>>,
}

impl Exec {
    /// A process to be started later (T30). `spec` is an OCI process as JSON; the request's
    /// terminal wins over the one in it.
    ///
    /// # Errors
    /// An id that is no file name, or JSON that is none.
    pub fn new(id: &str, spec: &[u8], paths: Paths, ends: Option<Ends>) -> Result<Self> {
        if id.is_empty() || id.contains('/') || id.starts_with('.') {
            return Err(Error::InvalidArgument(format!("exec id {id:?}")));
        }
        check_lengths(id, &paths)?;
        let bad_spec = |e| Error::Refused(format!("spec of exec {id}: {e}"));
        let mut process = json::object(spec).map_err(bad_spec)?;
        process.retain(|key, _| !key.eq_ignore_ascii_case(TERMINAL));
        process.insert(TERMINAL.into(), paths.terminal.into());
        let spec = RefCell::new(Value::Object(process).to_string().into_bytes());
        Ok(Self {
            process: Rc::new(Process::new(ProcessId::Exec(id.to_owned()), paths, ends)),
            spec,
        })
    }

    /// Describes the exec for another process image.
    ///
    /// # Errors
    /// If no fd is free.
    pub fn hand_over(&self, kept: &mut Kept) -> io::Result<handover::Exec> {
        let process = self.process.hand_over(kept)?;
        let spec = self.spec.borrow().clone();
        Ok(handover::Exec { process, spec })
    }

    /// Goes on with an exec of another process image.
    ///
    /// # Errors
    /// If an fd is not what it is said to be.
    pub fn take_over(id: String, exec: handover::Exec, reaper: &Reaper) -> Result<Self> {
        let process = Process::take_over(ProcessId::Exec(id), exec.process, reaper)?;
        let process = Rc::new(process);
        let spec = RefCell::new(exec.spec);
        Ok(Self { process, spec })
    }

    /// What it takes as long as it is not deleted, in bytes.
    fn size(&self) -> usize {
        let process = &self.process;
        EXEC + self.id().len() + process.paths.length() + self.spec.borrow().len()
    }

    fn id(&self) -> &str {
        self.process.id.exec_id()
    }

    #[cfg(any(test, fuzzing))]
    pub fn spec(&self) -> Vec<u8> {
        self.spec.borrow().clone()
    }

    /// Sends `signal` (T50).
    ///
    /// # Errors
    /// FailedPrecondition before it was started, NotFound once it has ended, else code Unknown.
    pub fn kill(&self, signal: u32) -> Result<()> {
        let process = &self.process;
        process.state.get().allows_kill(process.pid.get())?;
        let finished = || Error::NotFound("process already finished".into());
        if process.reaped.get() {
            return Err(finished());
        }
        match sys::kill(process.pid.get(), signal) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(finished()),
            Err(e) => Err(Error::Refused(format!(
                "unknown error after kill: signal {signal}: {}",
                std::io::Error::from(e)
            ))),
        }
    }
}

impl Container {
    /// Adds an exec; nothing runs yet (T30).
    ///
    /// # Errors
    /// AlreadyExists, the state's refusal, or [`Exec::new`]'s.
    pub(crate) fn add_exec(
        &self,
        engine: &Engine,
        id: &str,
        spec: &[u8],
        paths: Paths,
    ) -> Result<()> {
        // Init's exit goes by the container's id: an exec of that name would end the container for
        // whoever hears of events.
        if id == self.id || self.execs.borrow().contains_key(id) {
            return Err(Error::AlreadyExists(format!("id {id}")));
        }
        self.init.state.get().init_allows(Request::Exec)?;
        let ends = engine.ends(&paths)?;
        let exec = Rc::new(Exec::new(id, spec, paths, ends)?);
        let there: usize = self.execs.borrow().values().map(|exec| exec.size()).sum();
        if there + exec.size() > MOST {
            let text = format!("execs that are not deleted take {there} bytes, {MOST} is the most");
            return Err(Error::Exhausted(text));
        }
        self.execs.borrow_mut().insert(id.to_owned(), exec);
        let event = TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: id.to_owned(),
        };
        engine.outbox.push(Event::ExecAdded(event));
        Ok(())
    }

    /// Starts an exec (T22). While it starts, init's exit is held back (X5), and so is its own
    /// until TaskExecStarted is on its way (X3).
    ///
    /// # Errors
    /// The state's refusal, FailedPrecondition once init is gone, or code Unknown with the
    /// runtime's words; then it can only be deleted (T23, U1).
    pub(crate) async fn start_exec(
        self: &Rc<Self>,
        engine: &Rc<Engine>,
        exec: &Exec,
        context: &Context,
    ) -> Result<u32> {
        let make = Box::pin(self.make_exec(engine, exec, context));
        self.start_exec_by(engine, exec, make, context).await
    }

    /// [`Container::start_exec`], with `make` as what makes the process.
    pub(crate) async fn start_exec_by(
        self: &Rc<Self>,
        engine: &Rc<Engine>,
        exec: &Exec,
        make: impl Future<Output = Result<(u32, Io)>>,
        context: &Context,
    ) -> Result<u32> {
        let process = &exec.process;
        let _turn = process.turn(context).await?;
        if self.last_exit.init_exited() {
            let text = format!("container {} init process is not running", self.id);
            return Err(Error::FailedPrecondition(text));
        }
        process.state.get().exec_allows_start()?;
        if process.exit.is_never() {
            return Err(Error::Refused("cannot start a failed process".into()));
        }
        self.last_exit.hold();
        self.starting_execs.set(self.starting_execs.get() + 1);
        let starting = engine.exits.starting();
        let made = make.await;
        self.starting_execs.set(self.starting_execs.get() - 1);
        let pid = match made {
            Ok((pid, io)) => {
                process.made(pid, io);
                process.state.set(State::Running);
                engine.outbox.push(Event::ExecStarted(TaskExecStarted {
                    container_id: self.id.clone(),
                    exec_id: exec.id().to_owned(),
                    pid,
                }));
                engine.track(pid, self, process);
                drop(starting);
                Ok(pid)
            }
            Err(e) => {
                process.exit.set_never();
                self.may_have_strays.set(true);
                Err(e)
            }
        };
        if self.may_have_strays.get() && self.starting_execs.get() == 0 {
            self.may_have_strays.set(false);
            self.kill_strays(engine);
        }
        if pid.is_err() {
            engine.release(self);
        }
        pid
    }

    /// Kills what failed execs have left (T23). In a pid namespace of its own orphans go to the
    /// container's init, so a child of ours there that nobody tracks is one that an OCI runtime
    /// made and told nobody of. Cgroups below may be those of other containers. Not to be called
    /// while an exec is being started.
    fn kill_strays(&self, engine: &Engine) {
        if !self.own_pid_namespace {
            return;
        }
        for pid in self.cgroup_members() {
            // A child that is not reaped: the pid can be nobody else's.
            if Reaper::is_child(pid) && !engine.exits.is_tracked(pid) {
                log::warn!("{}: process {pid} of a failed exec is killed", self.id);
                let _ = sys::kill(pid, SIGKILL);
            }
        }
    }

    async fn make_exec(
        &self,
        engine: &Engine,
        exec: &Exec,
        context: &Context,
    ) -> Result<(u32, Io)> {
        let process = &exec.process;
        let of = stdio::Of {
            namespace: &engine.namespace,
            process: exec.id(),
            bundle: &self.bundle,
            io_uid: self.options.io_uid,
            io_gid: self.options.io_gid,
        };
        let ends = process.ends.take();
        let prepared = stdio::prepare(&process.paths, ends, of, &engine.reaper, context);
        let (streams, prepared) = prepared.await?;
        let pid_file = self.bundle.pid(&process.id);
        let spec = self.bundle.exec_spec(exec.id());
        let (old, wanted, content) = (pid_file.clone(), spec.clone(), exec.spec.take());
        let written = aside::run(move || {
            let _ = fs::remove_file(old);
            write_private(&wanted, &content).map_err(Error::io("write", &wanted))
        });
        written.await?;
        let socket = prepared.console_socket().map(ToOwned::to_owned);
        let console = Console(socket.as_deref());
        let run = self
            .runtime
            .exec(&self.id, exec.id(), console, streams, context);
        let made = prepared
            .connect(run, |failure: Failure| failure.oci(FAILED))
            .await;
        let failed = made.is_err();
        let born = aside::run(move || {
            let _ = fs::remove_file(&spec);
            let born = read_made(&pid_file);
            if failed {
                let _ = fs::remove_file(&pid_file);
            }
            born
        });
        match (made, born.await) {
            (Ok(io), Ok((pid, at))) => {
                process.made_at.set(at);
                Ok((pid, io))
            }
            (Ok(_), Err(e)) => Err(Failure::broken_promise(e.to_string()).oci(FAILED)),
            (Err(e), born) => {
                // The runtime made it, and failed all the same: nobody will ever ask for it.
                if let Ok((pid, _)) = born
                    && Reaper::is_child(pid)
                {
                    let _ = sys::kill(pid, SIGKILL);
                }
                Err(e)
            }
        }
    }

    /// Forgets an exec that does not run (T62).
    ///
    /// # Errors
    /// The state's refusal.
    pub(crate) async fn delete_exec(&self, exec: &Exec, context: &Context) -> Result<Exit> {
        let process = &exec.process;
        let _turn = process.turn(context).await?;
        process.state.get().exec_allows_delete()?;
        // Its exit is told first.
        if process.exit().is_some() {
            process.wait(context).await?;
        }
        process.close_io(&self.id).await;
        let (bundle, id) = (self.bundle.clone(), process.id.clone());
        aside::run(move || {
            let _ = fs::remove_file(bundle.pid(&id));
            bundle.remove_exit(&id);
        })
        .await;
        process.deleted();
        self.execs.borrow_mut().remove(exec.id());
        Ok(process.exit().unwrap_or(Exit::NONE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_ids_are_file_names() {
        for bad in ["", "../x", "a/b", ".hidden"] {
            let error = Exec::new(bad, b"{}", Paths::default(), None).err().unwrap();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        assert!(Exec::new("e1", b"{}", Paths::default(), None).is_ok());
    }

    /// T30: the spec is passed on but for `terminal`, which is the request's to say.
    #[test]
    fn the_requests_terminal_wins() {
        let paths = Paths {
            terminal: true,
            ..Paths::default()
        };
        let spec = br#"{"terminal":false,"args":["sh"],"x":18446744073709551615,"y":1.845e294}"#;
        let exec = Exec::new("e", spec, paths, None).unwrap();
        let spec: Value = json::read(&exec.spec()).unwrap();
        assert_eq!(spec["terminal"], true);
        assert_eq!(
            (&spec["x"], &spec["y"]),
            (&u64::MAX.into(), &1.845e294.into())
        );
    }

    /// What Go's JSON takes is written so that no runtime has to: one written in C takes the first
    /// of two, and no `null`.
    #[test]
    fn a_spec_is_what_go_makes_of_it() {
        let spec = br#"{"Terminal":1,"args":["no"],"args":["sh"],"env":null,"user":{"uid":1},
            "user":{"gid":2},"x":"\ud800"}"#;
        let exec = Exec::new("e", spec, Paths::default(), None).unwrap();
        let text = String::from_utf8(exec.spec()).unwrap();
        let expected =
            r#"{"args":["sh"],"terminal":false,"user":{"gid":2,"uid":1},"x":"REPLACED"}"#;
        assert_eq!(text, expected.replace("REPLACED", "\u{fffd}"));
        for bad in ["[]", "5", "{", "{}x"] {
            assert!(
                Exec::new("e", bad.as_bytes(), Paths::default(), None).is_err(),
                "{bad}"
            );
        }
    }
}
