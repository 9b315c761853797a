// SPDX-License-Identifier: Apache-2.0
//! Traces: a call's traceparent reaches the runtime and hooks, and what the shim did for it is told.

use harness::disk::{self, Disk};
use harness::otlp::{self, Span, named};
use harness::runtime::Runtime;
use harness::{Shim, Test, differs, vm_differs, wait};
use protos::ttrpc::{CALLER, Trace};
use serde_json::json;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn parent() -> Option<Rc<Trace>> {
    let trace = Trace::parse(PARENT).unwrap();
    Some(Rc::new(trace.with(Some("a=b"), Some("c=d"))))
}

/// A runtime that writes down with what environment it was run for what.
fn telling(test: &Test) -> (Runtime, impl Fn() -> String) {
    let record = test.dir().join("record");
    let body = format!(
        "echo \"$ACTION $TRACEPARENT $TRACESTATE $BAGGAGE\" >>{}\nexec \"$RUNC\" \"$@\"",
        record.display()
    );
    let read = move || fs::read_to_string(&record).unwrap_or_default();
    (Runtime::script(test, "runc", &body), read)
}

/// The spans in a file, once there is one of this name.
async fn spans(file: &Path, name: &str) -> Vec<Span> {
    wait::until("the span", || {
        let text = fs::read_to_string(file).map_err(|e| e.to_string())?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let spans = otlp::read(whole);
        match spans.iter().any(|span| span.name == name) {
            true => Ok(spans),
            false => Err(text),
        }
    })
    .await
}

/// Without a place for spans a caller's trace is passed on as it came, and to nobody if there is none.
#[test]
fn the_runtime_and_its_hooks_are_told_whose_trace_it_is() {
    if differs("traces") || vm_differs("guests-runtime") {
        return;
    }
    harness::run(async |test| {
        let (runtime, record) = telling(test);
        let hooked = test.dir().join("hooked");
        let script = format!("echo \"$TRACEPARENT\" >{}", hooked.display());
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        let hooks = json!({"createRuntime": [hook]});
        let bundle = test.bundle("c").set("/hooks", hooks).build();
        // Of whoever has started containerd.
        let start = bundle.start().env("TRACEPARENT", "somebody's");
        let shim = start.env("BAGGAGE", "somebody's").shim().await;
        let create = shim.create(runtime.create(&bundle));
        CALLER.scope(parent(), create).await.unwrap();
        shim.start("c", "").await.unwrap();
        assert_eq!(record(), format!("create {PARENT} a=b c=d\nstart   \n"));
        assert_eq!(fs::read_to_string(hooked).unwrap(), format!("{PARENT}\n"));
    });
}

/// The call is a part of the caller's span, and what it does is a part of it.
#[test]
fn what_a_call_does_is_a_tree() {
    if differs("traces") || vm_differs("guests-runtime") {
        return;
    }
    harness::run(async |test| {
        let (runtime, record) = telling(test);
        let file = test.dir().join("spans");
        let bundle = test.bundle("c").build();
        let place = format!("file://{}", file.display());
        let shim = bundle.start().env("DUNNAGE_TRACE", &place).shim().await;
        let create = shim.create(runtime.create(&bundle));
        CALLER.scope(parent(), create).await.unwrap();
        let all = spans(&file, "Create").await;
        let (call, made) = (named(&all, "Create"), named(&all, "runtime create"));
        let mounted = named(&all, "mount rootfs");
        assert_eq!((&*call.parent, call.kind), ("b7ad6b7169203331", 2));
        assert_eq!((&made.parent, &mounted.parent), (&call.id, &call.id));
        for span in &all {
            assert_eq!(span.trace, "0af7651916cd43dd8448eb211c80319c");
            assert!(call.begin <= span.begin && span.end <= call.end, "{all:?}");
            assert_eq!(span.failed, None);
        }
        assert_eq!(call.attributes["container.id"], "c");
        assert_eq!(
            record(),
            format!("create 00-{}-{}-01 a=b c=d\n", call.trace, made.id)
        );
        // One that nobody traces begins a trace; one that only looks does not.
        shim.state("c", "").await.unwrap();
        shim.start("c", "").await.unwrap();
        let exec = bundle.exec("e", &["/not/there"]);
        shim.exec(exec).await.unwrap();
        shim.start("c", "e").await.unwrap_err();
        let all = spans(&file, "runtime exec").await;
        let exec = named(&all, "runtime exec");
        assert!(
            exec.failed.as_ref().expect("why").contains("/not/there"),
            "{exec:?}"
        );
        assert_ne!(exec.trace, call.trace);
        assert!(!all.iter().any(|span| span.name == "State"));
        // And nothing is told of one that its caller does not record.
        let unsampled = Trace {
            flags: 0,
            ..(*parent().unwrap()).clone()
        };
        let kill = shim.kill("c", "", libc::SIGKILL, true);
        CALLER.scope(Some(Rc::new(unsampled)), kill).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        let all = spans(&file, "Delete").await;
        assert!(!all.iter().any(|span| span.name == "Kill"));
        let last = record();
        let kill = last.lines().find(|line| line.starts_with("kill "));
        assert_eq!(
            kill,
            Some(&*format!("kill {} a=b c=d", PARENT.replace("-01", "-00")))
        );
    });
}

/// Whoever listens at a socket gets them; that nobody does harms nothing.
#[test]
fn spans_go_to_a_socket() {
    if differs("traces") {
        return;
    }
    harness::run(async |test| {
        let path = test.dir().join("spans.sock");
        let bundle = test.bundle("c").build();
        let place = format!("unix://{}", path.display());
        let shim: Shim = bundle.start().env("DUNNAGE_TRACE", &place).shim().await;
        shim.create(bundle.create()).await.unwrap();
        wait::until("the loss", || {
            let log = shim.log();
            log.contains("spans are lost").then_some(()).ok_or(log)
        })
        .await;
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        shim.start("c", "").await.unwrap();
        let mut text = String::new();
        wait::until("the spans", || {
            if let Ok((mut stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                stream.read_to_string(&mut text).unwrap();
            }
            let names: Vec<String> = otlp::read(&text).into_iter().map(|it| it.name).collect();
            let is_there = names.iter().any(|name| name == "Start");
            is_there.then_some(()).ok_or(text.clone())
        })
        .await;
    });
}

/// A disk that stands still holds up no call, and takes no more memory than the queue may.
#[test]
fn a_frozen_disk_holds_up_nothing() {
    if differs("traces") || vm_differs("private-mounts") {
        return;
    }
    harness::run(async |test| {
        let disk = Disk::new(test, test.dir().join("disk"));
        let file = disk.path().join("spans");
        fs::write(&file, "").unwrap();
        let bundle = test.bundle("c").build();
        let place = format!("file://{}", file.display());
        let shim = bundle.start().env("DUNNAGE_TRACE", &place).shim().await;
        let frozen = disk.freeze();
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        disk::is_waited_for_by(shim.pid()).await;
        let before = harness::proc::private_dirty(shim.pid());
        for _ in 0..1000 {
            let state = shim.state("c", "");
            CALLER.scope(parent(), state).await.unwrap();
        }
        let grown = harness::proc::private_dirty(shim.pid()).saturating_sub(before);
        assert!(grown < 512, "{grown} KiB more");
        drop(frozen);
        spans(&file, "Start").await;
        wait::until("what was lost", || {
            let log = shim.log();
            log.contains("spans were lost").then_some(()).ok_or(log)
        })
        .await;
    });
}

/// What it is told wrong is said by name, and harms nothing.
#[test]
fn a_place_that_is_none_is_named() {
    if differs("traces") {
        return;
    }
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let place = "http://127.0.0.1:4318";
        let shim = bundle.start().env("DUNNAGE_TRACE", place).shim().await;
        shim.create(bundle.create()).await.unwrap();
        let log = shim.log();
        assert!(
            log.contains("DUNNAGE_TRACE") && log.contains(place),
            "{log}"
        );
    });
}
