// SPDX-License-Identifier: Apache-2.0
//! `dunnage shims`: the shims of a machine, whoever has started them, and their metrics.

use harness::manager::{self, binary};
use harness::{Test, wait};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

async fn shims(args: &[&str]) -> String {
    let mut command = Command::new(binary());
    command.arg("shims").args(args);
    let output = wait::output(command, None).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Each family's type, and its lines of this namespace; what promtool's `check metrics` asks for.
fn families(text: &str, namespace: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let mut found = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").expect(line);
        let (name, help) = help.split_once(' ').expect(line);
        let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE "));
        let (of, kind) = kind.and_then(|it| it.split_once(' ')).expect(line);
        assert!(of == name && help.ends_with('.'), "{line}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        let mut own = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let rest = line.strip_prefix(name).expect(line);
            let value = rest.rsplit_once(' ').expect(line).1;
            assert!(value.parse::<f64>().is_ok(), "{line}");
            if line.contains(&format!("namespace=\"{namespace}\"")) {
                own.push(rest.to_owned());
            }
        }
        let known = found.insert(name.to_owned(), (kind.to_owned(), own));
        assert_eq!(known, None, "{name} twice");
    }
    found
}

/// The value of the only line of a family that has all of these labels.
fn value(families: &BTreeMap<String, (String, Vec<String>)>, name: &str, labels: &[&str]) -> f64 {
    let (family, ending) = match name.split_once('/') {
        Some((family, ending)) => (family, ending),
        None => (name, ""),
    };
    let lines = families.get(family).map(|(_, lines)| lines.as_slice());
    let lines = lines.unwrap_or_default().iter();
    let is_it = |line: &&String| {
        line.starts_with(&format!("{ending}{{")) && labels.iter().all(|label| line.contains(label))
    };
    let found: Vec<&String> = lines.filter(is_it).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {families:#?}");
    found[0]
        .rsplit_once(' ')
        .expect("a value")
        .1
        .parse()
        .expect("a number")
}

async fn told(test: &Test) -> BTreeMap<String, (String, Vec<String>)> {
    families(&shims(&["--metrics"]).await, test.namespace())
}

/// Shims that containerd would have started, with what they have done so far.
#[test]
fn what_shims_have_done_is_told_for_prometheus() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.running().await;
        shim.run(bundle.exec_sh("e", "exit 3")).await;
        shim.wait("c", "e").await.unwrap();
        shim.exec(bundle.exec("f", &["/not/there"])).await.unwrap();
        shim.start("c", "f").await.unwrap_err();
        test.events().exit("c", "e").await;
        let all = told(test).await;
        let one = |name: &str, labels: &[&str]| value(&all, name, labels);
        assert_eq!(one("dunnage_shim_up", &["shim=\"c\""]), 1.0);
        assert!(one("dunnage_shim_memory_bytes", &[]) > 10_000.0);
        assert_eq!(one("dunnage_shim_calls_total", &["method=\"Start\""]), 3.0);
        assert_eq!(
            one("dunnage_shim_calls_failed_total", &["method=\"Start\""]),
            1.0
        );
        assert_eq!(one("dunnage_shim_exits_total", &[]), 1.0);
        assert_eq!(one("dunnage_shim_events_waiting", &[]), 0.0);
        assert_eq!(one("dunnage_shim_processes", &["state=\"running\""]), 1.0);
        let exec = "command=\"exec\"";
        assert_eq!(one("dunnage_shim_runtime_failed_total", &[exec]), 1.0);
        let count = one("dunnage_shim_runtime_seconds/_count", &[exec]);
        assert_eq!(count, 2.0);
        let (_, lines) = &all["dunnage_shim_runtime_seconds"];
        let buckets = lines
            .iter()
            .filter(|line| line.starts_with("_bucket") && line.contains(exec));
        let buckets: Vec<f64> = buckets
            .map(|line| {
                line.rsplit_once(' ')
                    .expect("a value")
                    .1
                    .parse()
                    .expect("a number")
            })
            .collect();
        assert!(
            buckets.is_sorted() && buckets.last() == Some(&count),
            "{buckets:?}"
        );
        let listed = shims(&[]).await;
        let line = listed.lines().find(|line| line.contains(test.namespace()));
        assert!(
            line.expect("the shim").contains(&shim.pid().to_string()),
            "{listed}"
        );
    });
}

/// As an exporter, and one that needs no daemon.
#[test]
fn metrics_are_served() {
    manager::on(|manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let path = manager.dir().join("shims.sock");
        let mut exporter = Command::new(binary());
        exporter.arg("shims").arg("--listen").arg(&path);
        let mut exporter = exporter.spawn().expect("dunnage");
        let connect = || UnixStream::connect(&path).map_err(|e| e.to_string());
        let mut stream = wait::until_within(wait::DEADLINE, "the exporter", connect);
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        exporter.kill().expect("kill");
        exporter.wait().expect("its end");
        let (_, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let all = families(text, &manager.namespace());
        assert_eq!(value(&all, "dunnage_shim_up", &["shim=\"c\""]), 1.0);
    });
}
