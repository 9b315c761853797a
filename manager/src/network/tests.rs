// SPDX-License-Identifier: Apache-2.0
//! Tests of wishes and of lists of plugins.

use super::config::List;
use super::*;
use serde_json::{Value, json};

fn port(text: &str, host_ip: Option<&str>) -> Port {
    let (host, container) = text.split_once(':').unwrap();
    Port {
        host_port: host.parse().unwrap(),
        container_port: container.parse().unwrap(),
        protocol: Protocol::Tcp,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    }
}

#[test]
fn a_port_is_in_cnis_words() {
    let mut udp = port("53:5353", Some("127.0.0.1"));
    udp.protocol = Protocol::Udp;
    let words =
        json!({"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1"});
    assert_eq!(serde_json::to_value(&udp).unwrap(), words);
    assert_eq!(udp.to_string(), "127.0.0.1:53:5353/udp");
    assert_eq!(port("1:2", Some("::1")).to_string(), "[::1]:1:2");
}

#[test]
fn one_port_of_the_hosts_leads_to_one_place() {
    let one = port("80:1", None);
    assert!(one.conflicts(&port("80:2", Some("10.0.0.1"))));
    assert!(port("80:1", Some("0.0.0.0")).conflicts(&port("80:2", Some("10.0.0.1"))));
    assert!(!port("80:1", Some("10.0.0.2")).conflicts(&port("80:2", Some("10.0.0.1"))));
    assert!(!one.conflicts(&port("81:1", None)));
    let mut udp = port("80:1", None);
    udp.protocol = Protocol::Udp;
    assert!(!one.conflicts(&udp));
}

#[test]
fn a_wish_is_a_label_whose_key_is_a_files_name() {
    let with = |key: &str| {
        let wish = Wish {
            key: key.into(),
            ..Wish::default()
        };
        let label = serde_json::to_string(&wish).unwrap();
        super::wish(&Labels::from([(LABEL.to_owned(), label)]))
    };
    assert_eq!(with("web-0a1b2c3d").unwrap().unwrap().key, "web-0a1b2c3d");
    for bad in ["../x", "a/b", ".x", &"x".repeat(200)] {
        assert!(with(bad).is_err(), "{bad}");
    }
    assert_eq!(super::wish(&Labels::new()), Ok(None));
    assert!(super::wish(&Labels::from([(LABEL.to_owned(), "x".to_owned())])).is_err());
}

#[test]
fn lists_are_found_by_name_and_what_is_none_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = [dir.path().to_owned(), dir.path().join("absent")];
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "10-a.conf",
        r#"{"cniVersion": "0.4.0", "name": "a", "type": "bridge"}"#,
    );
    write(
        "20-b.conflist",
        r#"{"cniVersion": "1.0.0", "name": "b", "plugins": [{"type": "bridge", "x": 1},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#,
    );
    write("30-c.conflist", r#"{"cniVersion": "1.0.0", "name": "c"}"#);
    write("40-d.conf", r#"{"name": "d", "type": "bridge"}"#);
    write("50-e.conf", "{");
    write("60-f.conf", r#"{"cniVersion": "0.4.0", "name": "f"}"#);
    write("note.txt", "x");
    let a = List::find(&dirs, "a").unwrap();
    assert_eq!(a.types(), Some(vec!["bridge"]));
    assert!(!a.takes_ports());
    let b = List::find(&dirs, "b").unwrap();
    assert!(b.takes_ports());
    let ports = [port("80:8080", None)];
    let previous = json!({"ips": []});
    let request = b.request(0, &ports, None);
    let expected = json!({"type": "bridge", "x": 1, "name": "b", "cniVersion": "1.0.0"});
    assert_eq!(request, expected);
    let request = b.request(1, &ports, Some(&previous));
    assert_eq!(request["prevResult"], previous);
    assert_eq!(request["runtimeConfig"]["portMappings"][0]["hostPort"], 80);
    assert_eq!(request["capabilities"], Value::Null);
    let error = List::find(&dirs, "z").unwrap_err();
    for word in [
        "\"z\"",
        "a, b",
        "30-c.conflist: it has no plugins",
        "40-d.conf: cniVersion 0.1.0",
        "50-e.conf: EOF",
        "60-f.conf: a plugin without a type",
    ] {
        assert!(error.contains(word), "{error}");
    }
}
