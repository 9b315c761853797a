// SPDX-License-Identifier: Apache-2.0
//! What a container with a network finds in /etc: hosts, hostname and resolv.conf.

use super::record::Attachment;
use super::{Place, Wish};
use std::fmt::Write;
use std::io;
use std::net::IpAddr;

/// The host's, and what systemd-resolved keeps where the host's names only itself.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Writes them.
///
/// # Errors
/// From the disk.
pub fn write(place: &Place, attachment: &Attachment) -> io::Result<()> {
    let texts = [
        hosts(attachment),
        format!("{}\n", attachment.wish.hostname),
        resolv_conf(attachment),
    ];
    for ((path, _), text) in place.files().iter().zip(texts) {
        std::fs::write(path, text)?;
    }
    Ok(())
}

fn hosts(attachment: &Attachment) -> String {
    let wish = &attachment.wish;
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let addresses = attachment.addresses();
    let mut line = |address: IpAddr, name: &str| {
        let _ = writeln!(text, "{address}\t{name}");
    };
    for (address, _) in &addresses {
        line(*address, &wish.hostname);
    }
    let gateway = addresses.iter().find_map(|(_, gateway)| *gateway);
    for host in &wish.hosts {
        if let Some(address) = host.address.or(gateway) {
            line(address, &host.name);
        }
    }
    text
}

fn resolv_conf(attachment: &Attachment) -> String {
    let Wish { dns, search, .. } = &attachment.wish;
    let plugins = attachment.result.as_ref().map(|it| &it["dns"]);
    let of_plugins = |key: &str| {
        let list = plugins.and_then(|it| it[key].as_array());
        let texts = list.into_iter().flatten();
        let texts = texts.filter_map(|text| text.as_str().map(str::to_owned));
        texts.collect::<Vec<String>>()
    };
    let mut servers: Vec<String> = dns.iter().map(IpAddr::to_string).collect();
    let mut domains = search.clone();
    let mut options = Vec::new();
    if servers.is_empty() {
        servers = of_plugins("nameservers");
        options = of_plugins("options");
    }
    if domains.is_empty() {
        domains = of_plugins("search");
    }
    let host = Resolver::of_host();
    if servers.is_empty() {
        servers = host.servers;
        options = host.options;
    }
    if domains.is_empty() && dns.is_empty() {
        domains = host.search;
    }
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (word, list) in [("search", domains), ("options", options)] {
        if !list.is_empty() {
            let _ = writeln!(text, "{word} {}", list.join(" "));
        }
    }
    text
}

/// What a resolv.conf says (resolv.conf(5)).
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    /// The host's, but for servers that only the host itself can reach.
    fn of_host() -> Self {
        let read = RESOLVERS.map(|path| {
            let text = std::fs::read(path).unwrap_or_default();
            Self::parse(&String::from_utf8_lossy(&text))
        });
        let [mut host, resolved] = read;
        if host.servers.is_empty() {
            host.servers = resolved.servers;
        }
        host
    }

    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => found.servers.extend(words.next()),
                Some("search" | "domain") => found.search = words.collect(),
                Some("options") => found.options.extend(words),
                _ => {}
            }
        }
        found.servers.retain(|server| {
            // Without a scope, which is a device of the host's.
            let ip = server.parse::<IpAddr>();
            ip.is_ok_and(|ip| !ip.is_loopback())
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Host;
    use crate::network::config::List;
    use serde_json::json;

    fn attachment(wish: Wish) -> Attachment {
        let ips = json!([
            {"address": "10.9.0.2/24", "gateway": "10.9.0.1"},
            {"address": "fd00::2/64"},
        ]);
        Attachment {
            wish,
            list: List {
                name: "n".into(),
                cni_version: "1.0.0".into(),
                plugins: Vec::new(),
            },
            done: 0,
            is_refused: false,
            is_done: false,
            result: Some(
                json!({"ips": ips, "dns": {"nameservers": ["10.9.0.53"], "search": ["of.net"]}}),
            ),
        }
    }

    #[test]
    fn hosts_has_the_container_and_what_was_added() {
        let host = |name: &str, address: Option<&str>| Host {
            name: name.into(),
            address: address.map(|it| it.parse().unwrap()),
        };
        let wish = Wish {
            hostname: "web".into(),
            hosts: vec![host("db", Some("10.1.1.1")), host("gate", None)],
            ..Wish::default()
        };
        let text = hosts(&attachment(wish));
        let own = "10.9.0.2\tweb\nfd00::2\tweb\n10.1.1.1\tdb\n10.9.0.1\tgate\n";
        assert!(text.ends_with(own), "{text}");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"), "{text}");
    }

    #[test]
    fn who_names_servers_first_is_asked() {
        let plugins = resolv_conf(&attachment(Wish::default()));
        assert_eq!(plugins, "nameserver 10.9.0.53\nsearch of.net\n");
        let wish = Wish {
            dns: vec!["9.9.9.9".parse().unwrap(), "fd00::53".parse().unwrap()],
            search: vec!["a.b".into(), "c".into()],
            ..Wish::default()
        };
        let own = resolv_conf(&attachment(wish));
        assert_eq!(
            own,
            "nameserver 9.9.9.9\nnameserver fd00::53\nsearch a.b c\n"
        );
    }

    #[test]
    fn a_server_that_only_the_host_reaches_is_none() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver ::1\n\
                    options edns0 trust-ad\ndomain old\nsearch one two\n";
        let expected = Resolver {
            servers: vec!["10.0.0.1".into()],
            search: vec!["one".into(), "two".into()],
            options: vec!["edns0".into(), "trust-ad".into()],
        };
        assert_eq!(Resolver::parse(text), expected);
    }
}
