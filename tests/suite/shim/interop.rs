// SPDX-License-Identifier: Apache-2.0
//! The shim beside code that is neither ours nor Go's: containerd's Rust crates, `ttrpc` with
//! protobuf 3, as its client and as the server that its events go to.
//!
//! What this client is answered is compared with what ours is told of the same: both must read the
//! same fields in the same bytes.

use containerd_shim_protos::events::task as their_events;
use containerd_shim_protos::protobuf::{self, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::{api, cgroups, cgroups_v2, ttrpc};
use harness::figures::Figures;
use harness::{Bundle, Code, Shim, bundle, differs, refused, wait};
use protos::{Message, events, task};
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Their client, of the Task service that the shim promised.
struct Theirs {
    client: ttrpc::Client,
    service: &'static str,
}

impl Theirs {
    fn of(shim: &Shim) -> Self {
        let address = &shim.answer().address;
        let client = ttrpc::Client::connect(address);
        Self {
            client: client.unwrap_or_else(|e| panic!("{address}: {e}")),
            service: shim.service(),
        }
    }

    /// A call, on a thread of its own: their client waits for the answer.
    async fn call<A: protobuf::Message>(
        &self,
        method: &str,
        message: impl protobuf::Message,
    ) -> ttrpc::Result<A> {
        let request = request(self.service, method, &message);
        let client = self.client.clone();
        let call = tokio::task::spawn_blocking(move || client.request(request));
        let answer = call.await.expect("the client's thread")?;
        Ok(A::parse_from_bytes(&answer.payload).expect("the answer's message"))
    }

    async fn done(&self, method: &str, message: impl protobuf::Message) {
        let answer: ttrpc::Result<api::Empty> = self.call(method, message).await;
        answer.unwrap_or_else(|e| panic!("{method}: {e}"));
    }

    /// The code and the text of a refusal.
    async fn refused(&self, method: &str, message: impl protobuf::Message) -> (i32, String) {
        match self.call::<api::Empty>(method, message).await {
            Err(ttrpc::Error::RpcStatus(status)) => {
                assert!(status.details.is_empty(), "{status:?}");
                (status.code.value(), status.message)
            }
            other => panic!("{method}: not a refusal: {other:?}"),
        }
    }
}

fn request(service: &str, method: &str, message: &impl protobuf::Message) -> ttrpc::Request {
    ttrpc::Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: message.write_to_bytes().expect("a message"),
        timeout_nano: wait::DEADLINE.as_nanos() as i64,
        ..Default::default()
    }
}

/// Their message and ours are the same: each library reads in the other's bytes what it has itself.
#[track_caller]
fn same<T, O>(theirs: &T, ours: &O)
where
    T: protobuf::Message + PartialEq + Debug,
    O: Message + Default + PartialEq + Debug,
{
    let read = O::decode(theirs.write_to_bytes().expect("a message").as_slice());
    assert_eq!(&read.expect("their bytes"), ours);
    let read = T::parse_from_bytes(&ours.encode_to_vec());
    assert_eq!(&read.expect("our bytes"), theirs);
}

fn create(bundle: &Bundle) -> api::CreateTaskRequest {
    let mount = |mount: &protos::types::Mount| api::Mount {
        type_: mount.r#type.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
        ..Default::default()
    };
    api::CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path.display().to_string(),
        rootfs: bundle.rootfs.iter().map(mount).collect(),
        ..Default::default()
    }
}

fn exec(bundle: &Bundle, exec_id: &str, args: &[&str]) -> api::ExecProcessRequest {
    let spec = protobuf::well_known_types::any::Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: bundle::process(&bundle.test, args).to_string().into_bytes(),
        ..Default::default()
    };
    api::ExecProcessRequest {
        id: bundle.id.clone(),
        exec_id: exec_id.into(),
        spec: MessageField::some(spec),
        ..Default::default()
    }
}

fn start(id: &str, exec: &str) -> api::StartRequest {
    let (id, exec_id) = (id.to_owned(), exec.to_owned());
    api::StartRequest {
        id,
        exec_id,
        ..Default::default()
    }
}

fn state(id: &str, exec: &str) -> api::StateRequest {
    let (id, exec_id) = (id.to_owned(), exec.to_owned());
    api::StateRequest {
        id,
        exec_id,
        ..Default::default()
    }
}

fn kill(id: &str, exec: &str) -> api::KillRequest {
    let (id, exec_id) = (id.to_owned(), exec.to_owned());
    api::KillRequest {
        id,
        exec_id,
        signal: libc::SIGKILL as u32,
        ..Default::default()
    }
}

fn waited(id: &str, exec: &str) -> api::WaitRequest {
    let (id, exec_id) = (id.to_owned(), exec.to_owned());
    api::WaitRequest {
        id,
        exec_id,
        ..Default::default()
    }
}

fn delete(id: &str, exec: &str) -> api::DeleteRequest {
    let (id, exec_id) = (id.to_owned(), exec.to_owned());
    api::DeleteRequest {
        id,
        exec_id,
        ..Default::default()
    }
}

/// Processes and threads, and the limit of memory, in a container's figures.
fn figures(stats: &protobuf::well_known_types::any::Any) -> (u64, u64) {
    use protobuf::Message as _;
    if stats.type_url.ends_with("v1.Metrics") {
        let metrics = cgroups::metrics::Metrics::parse_from_bytes(&stats.value).expect("metrics");
        let memory = metrics.memory().usage().limit();
        return (metrics.pids().current(), memory);
    }
    let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&stats.value).expect("metrics");
    (metrics.pids().current(), metrics.memory().usage_limit())
}

/// What both clients are told of a process.
async fn same_state(theirs: &Theirs, shim: &Shim, exec: &str) -> task::StateResponse {
    let ours = shim.state("c", exec).await.expect("State");
    let told: api::StateResponse = theirs.call("State", state("c", exec)).await.expect("State");
    same(&told, &ours);
    ours
}

/// T8: each answer has what our own client is told of the same, field by field.
#[test]
fn another_client_leads_a_container_and_an_exec_through_their_lives() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let theirs = Theirs::of(&shim);

        let created: api::CreateTaskResponse = theirs
            .call("Create", create(&bundle))
            .await
            .expect("Create");
        let ours = same_state(&theirs, &shim, "").await;
        assert_eq!(created.pid, ours.pid);
        let started: api::StartResponse =
            theirs.call("Start", start("c", "")).await.expect("Start");
        assert_eq!(started.pid, ours.pid);
        assert_eq!(same_state(&theirs, &shim, "").await.pid, ours.pid);
        let request = api::ConnectRequest {
            id: "c".into(),
            ..Default::default()
        };
        let connected: api::ConnectResponse = theirs
            .call("Connect", request.clone())
            .await
            .expect("Connect");
        assert_eq!(connected.shim_pid as i32, shim.pid());
        assert_eq!(connected.task_pid, ours.pid);
        same(&connected, &shim.connect_call("c").await.expect("Connect"));
        // The client that is generated for the newest Task service, where the shim serves it.
        if !differs("task-v3") {
            let client = containerd_shim_protos::TaskClient::new(theirs.client.clone());
            let call = move || client.connect(ttrpc::context::Context::default(), &request);
            let generated = tokio::task::spawn_blocking(call).await.expect("a thread");
            assert_eq!(generated.expect("Connect"), connected);
        }

        theirs
            .done("Exec", exec(&bundle, "e", &["sleep", "100000"]))
            .await;
        same_state(&theirs, &shim, "e").await;
        let started: api::StartResponse =
            theirs.call("Start", start("c", "e")).await.expect("Start");
        let running = same_state(&theirs, &shim, "e").await;
        assert_eq!(started.pid, running.pid);
        let request = api::PidsRequest {
            id: "c".into(),
            ..Default::default()
        };
        let pids: api::PidsResponse = theirs.call("Pids", request).await.expect("Pids");
        assert!(pids.processes.iter().any(|it| it.pid == running.pid));
        same(&pids, &shim.pids("c").await.expect("Pids"));
        let request = api::StatsRequest {
            id: "c".into(),
            ..Default::default()
        };
        let stats: api::StatsResponse = theirs.call("Stats", request).await.expect("Stats");
        let ours = shim.stats("c").await.expect("Stats").stats.expect("stats");
        assert_eq!(stats.stats.type_url, ours.type_url);
        // Each library reads the same in the same bytes; from one call to the next they may change.
        let read = Figures::of(&protos::Any {
            type_url: stats.stats.type_url.clone(),
            value: stats.stats.value.clone(),
        });
        assert_eq!(figures(&stats.stats), (read.pids, read.memory_limit));
        assert!(read.pids >= 2, "init and the exec: {read:?}");

        let waiting = theirs.call::<api::WaitResponse>("Wait", waited("c", "e"));
        let (exit, ()) = tokio::join!(waiting, theirs.done("Kill", kill("c", "e")));
        let exit = exit.expect("Wait");
        assert_eq!(exit.exit_status, 137);
        same(&exit, &shim.wait("c", "e").await.expect("Wait"));
        let ours = same_state(&theirs, &shim, "e").await;
        let deleted: api::DeleteResponse = theirs
            .call("Delete", delete("c", "e"))
            .await
            .expect("Delete");
        same(&deleted, &deleted_of(&ours));

        theirs.done("Kill", kill("c", "")).await;
        let exit: api::WaitResponse = theirs.call("Wait", waited("c", "")).await.expect("Wait");
        same(&exit, &shim.wait("c", "").await.expect("Wait"));
        let ours = same_state(&theirs, &shim, "").await;
        let deleted: api::DeleteResponse = theirs
            .call("Delete", delete("c", ""))
            .await
            .expect("Delete");
        same(&deleted, &deleted_of(&ours));
        let request = api::ShutdownRequest {
            id: "c".into(),
            ..Default::default()
        };
        // The answer may race with the exit.
        let _ = theirs.call::<api::Empty>("Shutdown", request).await;
        wait::ended(shim.pid()).await;
    });
}

/// What Delete is to answer for a process in this state.
fn deleted_of(state: &task::StateResponse) -> task::DeleteResponse {
    task::DeleteResponse {
        pid: state.pid,
        exit_status: state.exit_status,
        exited_at: state.exited_at,
    }
}

/// T3: codes and texts are those that our own client gets.
#[test]
fn refusals_reach_another_client_with_their_code_and_text() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        let theirs = Theirs::of(&shim);
        let code = |status: protos::Status| (status.code as i32, status.message);

        let nobody = theirs.refused("State", state("nobody", "")).await;
        assert_eq!(nobody.0, Code::NotFound as i32);
        assert_eq!(nobody, code(refused(shim.state("nobody", "").await)));
        let nobody = theirs.refused("Start", start("c", "nobody")).await;
        assert_eq!(nobody.0, Code::NotFound as i32);
        assert_eq!(nobody, code(refused(shim.start("c", "nobody").await)));
        theirs.done("Exec", exec(&bundle, "e", &["true"])).await;
        let twice = theirs.refused("Exec", exec(&bundle, "e", &["true"])).await;
        assert_eq!(twice.0, Code::AlreadyExists as i32);
        let ours = refused(shim.exec(bundle.exec("e", &["true"])).await);
        assert_eq!(twice, code(ours));
        let early = theirs.refused("Delete", delete("c", "")).await;
        assert_eq!(early, code(refused(shim.delete("c", "").await)));
        let broken = api::ExecProcessRequest {
            exec_id: "broken".into(),
            ..exec(&bundle, "broken", &["/nonexistent"])
        };
        theirs.done("Exec", broken).await;
        let failed = theirs.refused("Start", start("c", "broken")).await;
        assert!(failed.1.contains("/nonexistent"), "{failed:?}");
        let unknown = theirs.refused("Nonsense", api::Empty::new()).await;
        assert_eq!(unknown.0, Code::Unimplemented as i32);
        let ours = shim.call_named("Nonsense").await;
        assert_eq!(unknown, code(refused(ours)));
    });
}

/// Their event service, as containerd has one at TTRPC_ADDRESS.
struct Listener {
    heard: UnboundedSender<Envelope>,
}

impl containerd_shim_protos::Events for Listener {
    fn forward(
        &self,
        _: &ttrpc::TtrpcContext,
        request: api::ForwardRequest,
    ) -> ttrpc::Result<api::Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let sent = self.heard.send(envelope);
        sent.map_err(|e| ttrpc::Error::Others(e.to_string()))?;
        Ok(api::Empty::new())
    }
}

fn listen(socket: &Path) -> (ttrpc::Server, UnboundedReceiver<Envelope>) {
    let (heard, events) = unbounded_channel();
    let service = containerd_shim_protos::create_events(Arc::new(Listener { heard }));
    let server = ttrpc::Server::new().bind(&format!("unix://{}", socket.display()));
    let mut server = server.expect("a server").register_service(service);
    server.start().expect("a server");
    (server, events)
}

/// The next event, of this topic, read by both libraries.
async fn next<T, O>(events: &mut UnboundedReceiver<Envelope>, topic: &str, space: &str) -> T
where
    T: protobuf::MessageFull + PartialEq + Debug,
    O: Message + Default + PartialEq + Debug,
{
    let envelope = wait::soon(topic, events.recv()).await.expect("an event");
    assert_eq!(
        (envelope.topic.as_str(), envelope.namespace.as_str()),
        (topic, space)
    );
    assert!(envelope.timestamp.seconds > 0, "{envelope}");
    let event = envelope.event.unwrap_or_default();
    assert_eq!(event.type_url, T::descriptor().full_name());
    let theirs = T::parse_from_bytes(&event.value).expect("an event's message");
    same(
        &theirs,
        &O::decode(event.value.as_slice()).expect("an event's message"),
    );
    theirs
}

/// X8: their server hears what happens, in order.
#[test]
fn events_reach_another_server() {
    harness::run(async |test| {
        let socket = test.dir().join("theirs.sock");
        let (server, mut heard) = listen(&socket);
        let bundle = test.bundle("c").build();
        let address = socket.display().to_string();
        let shim = bundle.start().env("TTRPC_ADDRESS", &address).shim().await;
        let (space, events) = (test.namespace(), &mut heard);

        let pid = shim.create(bundle.create()).await.expect("Create").pid;
        let create: their_events::TaskCreate =
            next::<_, events::TaskCreate>(events, "/tasks/create", space).await;
        assert_eq!((create.container_id.as_str(), create.pid), ("c", pid));
        assert_eq!(Path::new(&create.bundle), bundle.path);
        assert_eq!(create.rootfs.len(), bundle.rootfs.len());
        shim.start("c", "").await.expect("Start");
        let start: their_events::TaskStart =
            next::<_, events::TaskStart>(events, "/tasks/start", space).await;
        assert_eq!((start.container_id.as_str(), start.pid), ("c", pid));
        let exec = shim.run(bundle.exec_sh("e", "exit 7")).await;
        let added: their_events::TaskExecAdded =
            next::<_, events::TaskExecAdded>(events, "/tasks/exec-added", space).await;
        assert_eq!((&*added.container_id, &*added.exec_id), ("c", "e"));
        let started: their_events::TaskExecStarted =
            next::<_, events::TaskExecStarted>(events, "/tasks/exec-started", space).await;
        assert_eq!((&*started.exec_id, started.pid), ("e", exec));
        let exit: their_events::TaskExit =
            next::<_, events::TaskExit>(events, "/tasks/exit", space).await;
        assert_eq!((&*exit.id, exit.pid, exit.exit_status), ("e", exec, 7));
        shim.delete("c", "e").await.expect("Delete");
        shim.kill("c", "", libc::SIGKILL, false)
            .await
            .expect("Kill");
        let exit: their_events::TaskExit =
            next::<_, events::TaskExit>(events, "/tasks/exit", space).await;
        assert_eq!((&*exit.id, exit.pid, exit.exit_status), ("c", pid, 137));
        shim.delete("c", "").await.expect("Delete");
        let delete: their_events::TaskDelete =
            next::<_, events::TaskDelete>(events, "/tasks/delete", space).await;
        assert_eq!((delete.pid, delete.exit_status), (pid, 137));
        assert_eq!(delete.exited_at, exit.exited_at);
        shim.stopped().await;
        let end = tokio::task::spawn_blocking(move || server.shutdown());
        end.await.expect("the server's end");
        assert_eq!(heard.recv().await, None, "nothing else");
    });
}

/// A frame of theirs, with some bytes changed, lost or said twice.
fn mutated(seed: &mut u64, shim: &Shim, round: usize) -> Vec<u8> {
    let calls = [
        request(shim.service(), "Connect", &api::ConnectRequest::new()),
        request(shim.service(), "State", &state("nobody", "e")),
        request(shim.service(), "Wait", &waited("nobody", "")),
    ];
    let payload = ttrpc::proto::Codec::encode(&calls[round % calls.len()]).expect("a request");
    let mut frame: Vec<u8> = ttrpc::MessageHeader::new_request(1, payload.len() as u32).into();
    frame.extend(payload);
    // Xorshift: every run has the same frames.
    let mut random = |below: usize| {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed as usize % below
    };
    for _ in 0..=random(4) {
        let at = random(frame.len());
        match random(4) {
            0 => frame[at] = random(256) as u8,
            1 => frame[at] ^= 1 << random(8),
            2 => frame.truncate(at.max(1)),
            _ => frame.extend_from_within(at..),
        }
    }
    frame
}

/// B54: a shim reads on, or hangs up; who comes next is served.
#[test]
fn broken_frames_of_another_client_harm_nobody() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let before = shim.footprint();
        let mut seed = 0x5eed;
        for round in 0..300 {
            let frame = mutated(&mut seed, &shim, round);
            let mut stream = UnixStream::connect(shim.socket()).await.expect("connect");
            // It may have hung up already.
            let _ = stream.write_all(&frame).await;
            let _ = stream.shutdown().await;
            // Go's shim keeps a socket whose frame has no end.
            if differs("garbage-sockets") {
                continue;
            }
            let mut answers = Vec::new();
            let read = stream.read_to_end(&mut answers);
            let _ = wait::soon("the connection's end", read).await;
            let mut rest = answers.as_slice();
            while let Some((header, more)) = rest.split_at_checked(10) {
                let header = ttrpc::MessageHeader::from(header);
                let (payload, more) = more.split_at(header.length as usize);
                let answer = <ttrpc::Response as protobuf::Message>::parse_from_bytes(payload);
                assert!(answer.is_ok(), "{frame:?}: {answer:?}");
                rest = more;
            }
            assert!(rest.is_empty(), "{frame:?}: half a frame: {rest:?}");
        }
        let theirs = Theirs::of(&shim);
        let connected: ttrpc::Result<api::ConnectResponse> =
            theirs.call("Connect", api::ConnectRequest::new()).await;
        assert_eq!(connected.expect("Connect").shim_pid as i32, shim.pid());
        if !differs("garbage-sockets") {
            assert_eq!(shim.footprint(), before);
        }
    });
}
