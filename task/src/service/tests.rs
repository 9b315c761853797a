// SPDX-License-Identifier: Apache-2.0
//! The order of starts and exits under random interleavings (contract X1 to X9): the engine as it
//! is, with an imagined OCI runtime and kernel around it.
//!
//! ```text
//!  each step, at random:  a client asks          create, start, exec, wait, delete
//!                         the runtime works      a process is there; the command ends, well or not
//!                         the kernel does its    a process ends, by itself or with its init
//!                         the disk does its      a record of an exit is written, or removed
//! ```
//! Pids are few and used again as soon as they are free, as the kernel may do it.

use super::*;
use crate::aside;
use crate::process::exec::Exec;
use crate::reaper::ExitStatus;
use crate::stdio::Io;
use protos::events::TaskExit;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::task::{Poll, Waker};
use tokio::sync::oneshot;

/// Runs of `cargo test`; `RUNS` of the environment says otherwise.
const RUNS: u64 = 100_000;
const SEED: u64 = 0x5eed_c0de;
/// Beyond the kernel's: no fake pid is ever a real process.
const FIRST_PID: u32 = 1 << 23;

/// xorshift64*: the same runs on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A command of the OCI runtime that runs.
struct Command {
    what: What,
    /// The process it made, once it did.
    made: Option<u32>,
    end: oneshot::Sender<Result<u32>>,
}

#[derive(Clone, PartialEq)]
enum What {
    Create(String),
    Start(String),
    Exec(String, String),
    Delete(String),
}

/// A process of the imagined kernel.
#[derive(Clone)]
struct Alive {
    container: String,
    /// Empty for init; `None` for one that nobody asked for.
    exec: Option<String>,
    /// Its init is gone, so it must go too.
    doomed: bool,
}

/// What became of one process, as the test knows it.
#[derive(Default, Debug)]
struct Fate {
    pid: u32,
    started: bool,
    exit: Option<u32>,
}

type Job = Pin<Box<dyn Future<Output = ()>>>;

struct World {
    random: Random,
    service: Rc<Service>,
    jobs: Vec<Job>,
    commands: Rc<RefCell<Vec<Command>>>,
    alive: BTreeMap<u32, Alive>,
    /// By container and exec.
    fates: Rc<RefCell<HashMap<(String, String), Fate>>>,
    own_pid_namespace: bool,
    next_exec: usize,
    /// The OCI runtime fails now and then.
    fails: bool,
    log: Rc<RefCell<Vec<String>>>,
}

/// A command begins; what comes back is its end.
fn begin(
    commands: &Rc<RefCell<Vec<Command>>>,
    what: What,
) -> impl Future<Output = Result<u32>> + use<> {
    let commands = Rc::clone(commands);
    async move {
        let (end, ended) = oneshot::channel();
        let made = None;
        commands.borrow_mut().push(Command { what, made, end });
        ended.await.unwrap()
    }
}

impl World {
    fn new(seed: u64, reaper: &Rc<Reaper>) -> Self {
        let mut random = Random(seed);
        let outbox = Rc::new(Outbox::default());
        // Without one, a command is run when init ends: it fails.
        let own_pid_namespace = !random.one_in(4);
        Self {
            random,
            service: Service::new("n".into(), Rc::clone(reaper), outbox),
            jobs: Vec::new(),
            commands: Rc::default(),
            alive: BTreeMap::new(),
            fates: Rc::default(),
            own_pid_namespace,
            next_exec: 0,
            fails: true,
            log: Rc::default(),
        }
    }

    fn note(&self, text: String) {
        self.log.borrow_mut().push(text);
    }

    fn pid(&mut self) -> u32 {
        // A pid whose exit somebody may still be asking for is the kernel's to tell apart.
        let early = self.service.engine.runtime.join.early_pids();
        let free = |pid: &u32| !self.alive.contains_key(pid) && !early.contains(pid);
        let free: Vec<u32> = (FIRST_PID..FIRST_PID + 40).filter(free).take(3).collect();
        free[self.random.below(free.len())]
    }

    /// A client asks for something that may or may not be possible.
    fn ask(&mut self) {
        let id = ["a", "b"][self.random.below(2)].to_owned();
        let (service, commands) = (Rc::clone(&self.service), Rc::clone(&self.commands));
        let (log, fates) = (Rc::clone(&self.log), Rc::clone(&self.fates));
        let context = Context::background();
        let Ok(container) = service.containers.find(&id) else {
            if self.alive.values().any(|process| process.container == id) {
                return;
            }
            let own = self.own_pid_namespace;
            let make = begin(&commands, What::Create(id.clone()));
            self.note(format!("ask create {id}"));
            self.jobs.push(Box::pin(async move {
                let engine = Rc::clone(&service.engine);
                let make = async {
                    let pid = make.await?;
                    let container = Container::imagined(&engine, &id, own);
                    container.init.made(pid, Io::default());
                    Ok(container)
                };
                let request = CreateTaskRequest {
                    id: id.clone(),
                    ..Default::default()
                };
                if let Ok(answer) = service.create_by(request, make, &context).await {
                    let mut fates = fates.borrow_mut();
                    let fate = fates.entry((id, String::new())).or_default();
                    assert_eq!(fate.pid, answer.pid);
                    fate.started = true;
                }
            }));
            return;
        };
        let engine = Rc::clone(&service.engine);
        let known: Vec<Rc<Exec>> = container.execs.borrow().values().cloned().collect();
        let exec = (!known.is_empty()).then(|| {
            let id = |exec: &Rc<Exec>| exec.process.id.exec_id().to_owned();
            let mut ids: Vec<_> = known.iter().map(id).collect();
            ids.sort();
            ids.swap_remove(self.random.below(ids.len()))
        });
        match (self.random.below(8), exec) {
            (0, _) => {
                self.note(format!("ask start {id}"));
                let run = begin(&commands, What::Start(id));
                self.jobs.push(Box::pin(async move {
                    let run = async { run.await.map(drop) };
                    let _ = container.start_by(&engine, run, &context).await;
                }));
            }
            (1, _) => {
                let remove = begin(&commands, What::Delete(id.clone()));
                self.note(format!("ask delete {id}"));
                self.jobs.push(Box::pin(async move {
                    let remove = async { remove.await.map(drop) };
                    let unmount = std::future::ready(Ok(()));
                    if let Ok(exit) = container.delete_by(remove, unmount, &context).await {
                        service.deleted(id, &container, exit);
                    }
                }));
            }
            (2, Some(exec)) => {
                self.note(format!("ask delete {id} {exec}"));
                let exec = container.exec(&exec).unwrap();
                self.jobs.push(Box::pin(async move {
                    let _ = container.delete_exec(&engine, &exec, &context).await;
                }));
            }
            (3, exec) => {
                let exec = exec.unwrap_or_default();
                let process = container.process(&exec).unwrap();
                self.jobs.push(Box::pin(async move {
                    let exit = process.wait(&context).await.unwrap();
                    let fates = fates.borrow();
                    let told = fates.get(&(id.clone(), exec.clone()));
                    let told = told.and_then(|fate| fate.exit).unwrap_or_default();
                    assert_eq!(exit.status, told, "Wait of {id} {exec}");
                }));
            }
            (4 | 5, Some(exec)) => {
                self.note(format!("ask start {id} {exec}"));
                let make = begin(&commands, What::Exec(id.clone(), exec.clone()));
                let exec = container.exec(&exec).unwrap();
                self.jobs.push(Box::pin(async move {
                    let gone = container.last_exit.init_exited();
                    let make = async { Ok((make.await?, Io::default())) };
                    let process = &exec.process;
                    let started = container
                        .start_exec_by(&engine, &exec, make, &context)
                        .await;
                    match started {
                        Ok(pid) => {
                            let mut fates = fates.borrow_mut();
                            let fate = fates
                                .get_mut(&(id, process.id.exec_id().to_owned()))
                                .unwrap();
                            assert_eq!(fate.pid, pid);
                            fate.started = true;
                        }
                        Err(e) => log.borrow_mut().push(format!("refused {gone}: {e}")),
                    }
                }));
            }
            _ => {
                self.next_exec += 1;
                let exec = format!("e{}", self.next_exec);
                let _ = container.add_exec(&engine, &exec, b"{}", Paths::default());
            }
        }
    }

    /// The init of a container, if it is alive.
    fn init(&self, id: &str) -> Option<u32> {
        let init = |process: &Alive| process.container == id && process.exec.as_deref() == Some("");
        self.alive
            .iter()
            .find(|(_, process)| init(process))
            .map(|(&pid, _)| pid)
    }

    /// One of the running commands goes on.
    fn work(&mut self) {
        let count = self.commands.borrow().len();
        if count == 0 {
            return;
        }
        let at = self.random.below(count);
        let (what, made) = {
            let commands = self.commands.borrow();
            (commands[at].what.clone(), commands[at].made)
        };
        let fails = self.fails && self.random.one_in(6);
        let wants_process = match &what {
            What::Create(id) => Some((id.clone(), String::new())),
            What::Exec(id, exec) => Some((id.clone(), exec.clone())),
            _ => None,
        };
        if let (Some((id, exec)), None, false) = (&wants_process, made, fails) {
            let possible = exec.is_empty() || self.init(id).is_some();
            if possible {
                let pid = self.pid();
                self.note(format!("made {id} {exec}: {pid}"));
                let process = Alive {
                    container: id.clone(),
                    exec: Some(exec.clone()),
                    doomed: false,
                };
                self.alive.insert(pid, process);
                let fate = Fate {
                    pid,
                    ..Fate::default()
                };
                let key = (id.clone(), exec.clone());
                self.fates.borrow_mut().insert(key, fate);
                self.commands.borrow_mut()[at].made = Some(pid);
                return;
            }
        }
        let command = self.commands.borrow_mut().remove(at);
        let failed = || Err(Error::Refused("the runtime failed".into()));
        let result = match (&what, made) {
            (What::Create(_) | What::Exec(..), Some(pid)) => Ok(pid),
            (What::Create(_) | What::Exec(..), None) => failed(),
            (What::Start(id), _) if self.init(id).is_none() || fails => failed(),
            (What::Delete(_), _) if fails => failed(),
            (What::Delete(id), _) => {
                // It kills a created container's init, and waits for that.
                if let Some(init) = self.init(id) {
                    self.doom(init);
                    self.alive.get_mut(&init).unwrap().doomed = true;
                }
                Ok(0)
            }
            _ => Ok(0),
        };
        let name = match &what {
            What::Create(id) => format!("create {id}"),
            What::Start(id) => format!("start {id}"),
            What::Exec(id, exec) => format!("exec {id} {exec}"),
            What::Delete(id) => format!("delete {id}"),
        };
        self.note(format!("ended {name}: {result:?}"));
        let _ = command.end.send(result);
    }

    /// The kernel ends what lives in the pid namespace of this init.
    fn doom(&mut self, init: u32) {
        let id = self.alive[&init].container.clone();
        for process in self.alive.values_mut() {
            if process.container == id && process.exec.as_deref() != Some("") {
                process.doomed = true;
            }
        }
    }

    /// A process ends and is reaped; doomed ones first.
    fn end_process(&mut self) {
        let doomed: Vec<u32> = self
            .alive
            .iter()
            .filter(|(_, process)| process.doomed)
            .map(|(&pid, _)| pid)
            .collect();
        let all: Vec<u32> = self.alive.keys().copied().collect();
        let from = if doomed.is_empty() { all } else { doomed };
        if from.is_empty() {
            return;
        }
        let pid = from[self.random.below(from.len())];
        let process = self.alive[&pid].clone();
        if process.exec.as_deref() == Some("") {
            self.doom(pid);
        }
        self.alive.remove(&pid);
        let code = self.random.below(256) as u8;
        self.note(format!("reaped {pid}: {code}"));
        if let Some(exec) = process.exec {
            let mut fates = self.fates.borrow_mut();
            let fate = fates.get_mut(&(process.container, exec)).unwrap();
            assert_eq!(fate.pid, pid);
            fate.exit = Some(code.into());
        }
        self.service.engine.reaped(pid, ExitStatus::Code(code));
    }

    /// Something that a container left behind becomes the shim's.
    fn orphan(&mut self) {
        let pid = self.pid();
        let process = Alive {
            container: String::new(),
            exec: None,
            doomed: false,
        };
        self.alive.insert(pid, process);
    }

    /// Lets every job and every task of the engine go as far as it can.
    async fn settle(&mut self) {
        loop {
            let jobs = self.jobs.len();
            let mut context = std::task::Context::from_waker(Waker::noop());
            let poll = |job: &mut Job| job.as_mut().poll(&mut context) == Poll::Pending;
            self.jobs.retain_mut(poll);
            let is_settled = self.service.engine.is_settled();
            if self.use_disk() {
                continue;
            }
            if is_settled && self.jobs.len() == jobs {
                return;
            }
            if !is_settled {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The disk does something of what it is asked for, in any order; false if that is nothing.
    fn use_disk(&mut self) -> bool {
        let kept = aside::by_hand::kept();
        if kept > 0 {
            aside::by_hand::do_one(self.random.below(kept));
        }
        kept > 0
    }

    /// X5: while anything of a container runs or is being started, its init has not ended.
    fn check_now(&self) {
        for id in ["a", "b"] {
            let Ok(container) = self.service.containers.find(id) else {
                continue;
            };
            let running = |exec: &Rc<Exec>| exec.process.state.get() == State::Running;
            let any = container.execs.borrow().values().any(running);
            let told = container.init.exit().is_some();
            assert!(!(any && told), "X5: {id}'s init ended before an exec");
            assert_eq!(told, container.init.state.get() == State::Stopped);
        }
    }

    async fn run(&mut self) {
        for _ in 0..8 + self.random.below(40) {
            match self.random.below(11) {
                0..4 => self.ask(),
                4..7 => self.work(),
                7..9 => self.end_process(),
                9 => drop(self.use_disk()),
                _ => self.orphan(),
            }
            if !self.random.one_in(4) {
                self.settle().await;
            }
            self.check_now();
        }
        // Whatever happened, all of it can be brought to an end.
        self.fails = false;
        self.wind_down().await;
        for id in ["a", "b"] {
            self.delete_all(id);
        }
        self.wind_down().await;
    }

    /// Until no command runs, and no process.
    async fn wind_down(&mut self) {
        self.settle().await;
        while !self.commands.borrow().is_empty() || !self.alive.is_empty() {
            self.work();
            self.settle().await;
            self.end_process();
            self.settle().await;
            self.check_now();
        }
    }

    /// A client deletes what is there.
    fn delete_all(&mut self, id: &str) {
        let Ok(container) = self.service.containers.find(id) else {
            return;
        };
        let (service, id) = (Rc::clone(&self.service), id.to_owned());
        let remove = begin(&self.commands, What::Delete(id.clone()));
        let context = Context::background();
        self.jobs.push(Box::pin(async move {
            let execs: Vec<_> = container.execs.borrow().values().cloned().collect();
            for exec in execs {
                let _ = container
                    .delete_exec(&service.engine, &exec, &context)
                    .await;
            }
            let remove = async { remove.await.map(drop) };
            let unmount = std::future::ready(Ok(()));
            if let Ok(exit) = container.delete_by(remove, unmount, &context).await {
                service.deleted(id, &container, exit);
            }
        }));
    }

    /// What was published, in order.
    fn published(&self) -> VecDeque<Event> {
        let mut events = VecDeque::new();
        let mut context = std::task::Context::from_waker(Waker::noop());
        loop {
            let mut head = Box::pin(self.service.engine.outbox.head());
            match head.as_mut().poll(&mut context) {
                Poll::Ready((_, event)) => events.push_back(event),
                Poll::Pending => return events,
            }
            self.service.engine.outbox.sent();
        }
    }

    fn check_end(&self) {
        assert!(self.jobs.is_empty(), "{} requests hang", self.jobs.len());
        assert!(self.service.containers.is_empty(), "containers are left");
        assert!(
            self.service.engine.runtime.join.is_idle(),
            "pids are still tracked"
        );
        let events = self.published();
        // One life of a container ends with its TaskDelete; then its name is free again.
        let mut lives: HashMap<String, Life> = HashMap::new();
        for event in &events {
            let id = match event {
                Event::Create(e) => &e.container_id,
                Event::Start(e) => &e.container_id,
                Event::Exit(e) => &e.container_id,
                Event::Delete(e) => &e.container_id,
                Event::ExecAdded(e) => &e.container_id,
                Event::ExecStarted(e) => &e.container_id,
                other => panic!("{other:?}"),
            };
            let life = lives.entry(id.clone()).or_default();
            life.take(event);
            if matches!(event, Event::Delete(_)) {
                lives.remove(id);
            }
        }
        assert!(lives.is_empty(), "TaskDelete is missing: {events:#?}");
        self.check_exits(&events);
    }

    /// X1, X2: each exit is that of its process, and none is missing.
    fn check_exits(&self, events: &VecDeque<Event>) {
        let exits = |id: &str, process: &str| -> Vec<&TaskExit> {
            let mut found = Vec::new();
            for event in events {
                if let Event::Exit(exit) = event
                    && exit.container_id == id
                    && exit.id == process
                {
                    found.push(exit);
                }
            }
            found
        };
        for ((id, exec), fate) in self.fates.borrow().iter() {
            let told = exits(id, if exec.is_empty() { id } else { exec });
            if exec.is_empty() {
                // Of several lives under one name this is the last.
                let last = told.last().filter(|_| fate.started);
                let last = last.map(|exit| (exit.pid, Some(exit.exit_status)));
                assert_eq!(last, fate.started.then_some((fate.pid, fate.exit)), "{id}");
            } else {
                let told: Vec<_> = told.iter().map(|e| (e.pid, Some(e.exit_status))).collect();
                let expected: Vec<_> = fate
                    .started
                    .then_some((fate.pid, fate.exit))
                    .into_iter()
                    .collect();
                assert_eq!(told, expected, "{id} {exec}: {fate:?}");
            }
        }
    }
}

/// From TaskCreate to TaskDelete.
#[derive(Default)]
struct Life {
    created: bool,
    started: bool,
    exited: bool,
    /// Exec to: started, exited.
    execs: HashMap<String, (bool, bool)>,
}

impl Life {
    /// X3, X5, X8, X9, event by event.
    fn take(&mut self, event: &Event) {
        match event {
            Event::Create(_) => {
                assert!(!self.created, "X8: created twice");
                self.created = true;
                return;
            }
            Event::Start(_) => {
                assert!(
                    !self.started && !self.exited,
                    "X8: start after start or exit"
                );
                self.started = true;
            }
            Event::ExecAdded(e) => {
                assert!(
                    self.execs
                        .insert(e.exec_id.clone(), (false, false))
                        .is_none()
                );
            }
            Event::ExecStarted(e) => {
                assert!(!self.exited, "X5: an exec started after init's exit");
                let exec = self.execs.get_mut(&e.exec_id).expect("X8: added before");
                assert!(!exec.0, "started twice");
                exec.0 = true;
            }
            Event::Exit(e) if e.id == e.container_id => {
                assert!(!self.exited, "X2: init's exit twice");
                let running = |(started, exited): &(bool, bool)| *started && !exited;
                assert!(!self.execs.values().any(running), "X5: init's exit is last");
                self.exited = true;
            }
            Event::Exit(e) => {
                let exec = self.execs.get_mut(&e.id).expect("X8: added before");
                assert!(exec.0, "X3: exit before start");
                assert!(!exec.1, "X2: exit twice");
                exec.1 = true;
            }
            Event::Delete(_) => assert!(self.exited, "X8: deleted before the exit"),
            _ => {}
        }
        assert!(self.created, "X8: {event:?} before TaskCreate");
    }
}

fn runs() -> u64 {
    let text = std::env::var("RUNS").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(RUNS)
}

#[test]
fn exits_keep_their_order_in_random_interleavings() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .unwrap();
    runtime.block_on(async {
        aside::by_hand::begin();
        let reaper = Reaper::imagined().unwrap();
        for run in 0..runs() {
            let mut world = World::new(
                SEED.wrapping_add(run).wrapping_mul(0x9e37_79b9) | 1,
                &reaper,
            );
            let log = Rc::clone(&world.log);
            let _tell = Tell(run, log);
            // A request must go on whenever it can: no budget.
            tokio::task::unconstrained(world.run()).await;
            world.check_end();
        }
    });
}

/// Prints what led to a failure, if there was one.
struct Tell(u64, Rc<RefCell<Vec<String>>>);

impl Drop for Tell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("run {}:\n  {}", self.0, self.1.borrow().join("\n  "));
        }
    }
}
