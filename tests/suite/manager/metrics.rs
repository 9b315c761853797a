// SPDX-License-Identifier: Apache-2.0
//! The metrics endpoint, beside a live containerd's.

use harness::containerd::{self, report};
use harness::{manager, wait};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// A port that was free a moment ago.
fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains(" 200 "), "{head}");
    body.to_owned()
}

/// Each family's type, and the names of its labels; those of containers.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found = BTreeMap::<String, (String, BTreeSet<String>)>::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a type");
            found.entry(name.into()).or_default().0 = kind.into();
        } else if let Some((name, rest)) = line.split_once('{')
            && !line.starts_with('#')
        {
            let labels = rest.rsplit_once('}').expect("labels").0;
            let names = labels
                .split("\",")
                .filter_map(|pair| Some(pair.split_once('=')?.0));
            let family = found.entry(name.into()).or_default();
            family
                .1
                .extend(names.map(|name| name.trim_start_matches(',').to_owned()));
        }
    }
    found.retain(|name, _| name.starts_with("container_"));
    found
}

#[test]
fn container_gauges_have_containerds_names_types_and_labels() {
    let theirs_at = port();
    let config = format!("[metrics]\naddress = \"127.0.0.1:{theirs_at}\"\n");
    let theirs = containerd::with("1.6", config, |containerd| {
        containerd.run_detached(&[], "c", &["sleep", "1000"]);
        wait::until_within(containerd::DEADLINE, "gauges of the container", || {
            let text = get(theirs_at, "/v1/metrics");
            match text.contains("container_id=\"c\"") {
                true => Ok(text),
                false => Err(text),
            }
        })
    });
    let Some(theirs) = theirs else { return };
    let ours_at = port();
    let config = format!("[metrics]\naddress = \"127.0.0.1:{ours_at}\"\n");
    manager::with(&config, |manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let text = get(ours_at, "/v1/metrics");
        assert!(text.contains("dunnage_tasks{"), "{text}");
        assert!(text.contains("dunnage_journal_records_total "), "{text}");
        let other = theirs.clone();
        let (ours, theirs) = (families(&text), families(&theirs));
        assert!(ours.len() > 5, "{text}");
        for (name, family) in &ours {
            assert_eq!(Some(family), theirs.get(name), "{name}\n{other}");
        }
        report(&format!(
            "{} of containerd's {} gauges",
            ours.len(),
            theirs.len()
        ));
    });
}

#[test]
fn a_socket_serves_too_and_is_not_made_over_a_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("metrics.sock");
    let config = format!("[metrics]\naddress = {path:?}\n");
    manager::with(&config, |manager| {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).expect("connect");
        stream
            .write_all(b"GET / HTTP/1.0\r\n\r\n")
            .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.contains("dunnage_subscribers 0"), "{answer}");
        manager.kill();
        manager.restart();
    });
    std::fs::remove_file(&path).expect("the socket");
    std::fs::write(&path, "mine").expect("a file");
    let config = dir.path().join("config.toml");
    let place = dir.path().display();
    let text =
        format!("root = \"{place}/r\"\nstate = \"{place}/s\"\n[metrics]\naddress = {path:?}\n");
    std::fs::write(&config, text).expect("config.toml");
    let mut daemon = std::process::Command::new(manager::binary());
    let output = daemon.arg("--config").arg(&config).arg("daemon").output();
    let output = output.expect("dunnage");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("is no socket"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), "mine");
}

/// An address that somebody else has is a warning: containers matter more than their numbers.
#[test]
fn an_address_in_use_does_not_end_the_daemon() {
    let theirs = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = theirs.local_addr().expect("its address");
    let config = format!("[metrics]\naddress = \"{address}\"\n");
    manager::with(&config, |manager| {
        manager.run(&["--rm"], "c", &["true"]).ok();
        let log = manager.log();
        let said = format!("metrics.address \"{address}\"");
        assert!(log.contains(&said), "{log}");
    });
}

/// What promtool's `check metrics` asks for; containers' gauges have containerd's units.
#[test]
fn families_say_what_they_are() {
    let at = port();
    let config = format!("[metrics]\naddress = \"127.0.0.1:{at}\"\n");
    manager::with(&config, |manager| {
        manager.run(&["-d"], "c", &["sleep", "1000"]).ok();
        let text = get(at, "/metrics");
        let mut told = BTreeSet::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let help = line.strip_prefix("# HELP ").expect(line);
            let (name, help) = help.split_once(' ').expect(line);
            let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE "));
            let (of, kind) = kind.and_then(|it| it.split_once(' ')).expect(line);
            assert!(
                of == name && help.ends_with('.') && told.insert(name),
                "{text}"
            );
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let labels = line.strip_prefix(name).expect(line);
                let value = labels.rsplit_once(' ').expect(line).1;
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(told.contains("container_pids_current"), "{text}");
        assert!(told.contains("dunnage_events_received_total"), "{text}");
    });
}
