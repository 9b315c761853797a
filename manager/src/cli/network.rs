// SPDX-License-Identifier: Apache-2.0
//! A container's network, as the command line has it: none, the host's, or one of CNI's, with ports and
//! names; and `network ls`.

use super::output::rows;
use super::process::{list, object};
use crate::config::Config;
use crate::names::check_label;
use crate::network::config::List;
use crate::network::{self, Action, Host, LABEL, Order, Place, Port, Protocol, Wish, record};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use task::reaper::{ExitStatus, Reaper};

/// What Docker calls the host, seen from a network.
const GATEWAY: &str = "host-gateway";
const RESOLV_CONF: &str = "/etc/resolv.conf";

#[derive(Clone, Debug, Default, Args)]
pub struct Net {
    /// The network: none (only a loopback), host, or one of `network ls`; without a bundle the default
    /// is none
    #[arg(long, value_name = "NAME", value_parser = name)]
    net: Option<String>,
    /// A port of the host's that leads to one of the container's (repeatable)
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/udp|tcp]", value_parser = port)]
    publish: Vec<Port>,
    /// A server to ask for names, instead of the network's or the host's (repeatable)
    #[arg(long, value_name = "IP")]
    dns: Vec<IpAddr>,
    /// A domain in which names are looked for (repeatable)
    #[arg(long, value_name = "DOMAIN", value_parser = word)]
    dns_search: Vec<String>,
    /// A line more for /etc/hosts; host-gateway is the host (repeatable)
    #[arg(long, value_name = "NAME:IP", value_parser = host)]
    add_host: Vec<Host>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List those that a container can have
    Ls,
}

fn name(text: &str) -> Result<String, String> {
    // CNI's.
    let is_one = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    let name = is_one.then(|| text.to_owned());
    name.ok_or_else(|| "none of none, host and a name of letters, digits, '_', '.' and '-'".into())
}

fn word(text: &str) -> Result<String, String> {
    let is_one = (1..=255).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
    is_one
        .then(|| text.to_owned())
        .ok_or_else(|| "not a name".into())
}

fn port(text: &str) -> Result<Port, String> {
    let why = || "not [IP:]HOST:CONTAINER[/udp|tcp] with ports from 1 to 65535".to_owned();
    let (ports, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return Err(why()),
    };
    let (host, container) = ports.rsplit_once(':').ok_or_else(why)?;
    let (host_ip, host) = match host.rsplit_once(':') {
        None => (None, host),
        Some((ip, host)) => {
            let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
            let ip = match bare {
                Some(ip) => ip.parse().ok().map(IpAddr::V6),
                None => ip.parse().ok().map(IpAddr::V4),
            };
            (Some(ip.ok_or_else(why)?), host)
        }
    };
    let number = |text: &str| text.parse().ok().filter(|&port: &u16| port > 0);
    Ok(Port {
        host_port: number(host).ok_or_else(why)?,
        container_port: number(container).ok_or_else(why)?,
        protocol,
        host_ip,
    })
}

fn host(text: &str) -> Result<Host, String> {
    let both = text.split_once(':');
    let both = both.and_then(|(name, address)| Some((word(name).ok()?, address)));
    let (name, address) = both.ok_or_else(|| "not NAME:IP".to_owned())?;
    let address = match address {
        GATEWAY => None,
        ip => Some(
            ip.parse()
                .map_err(|_| format!("{ip:?}: no IP, nor {GATEWAY}"))?,
        ),
    };
    Ok(Host { name, address })
}

impl Net {
    /// Changes the spec of container `id` as wished; a network of CNI's becomes a label, too.
    ///
    /// # Errors
    /// A text that names the option that cannot be.
    pub fn change(
        &self,
        spec: &mut Value,
        id: &str,
        config: &Config,
        labels: &mut HashMap<String, String>,
    ) -> Result<(), String> {
        let net = self.net.as_deref();
        if let None | Some("none" | "host") = net {
            self.is_alone(net.unwrap_or("none"))?;
        }
        let Some(net) = net else {
            return Ok(());
        };
        let hostname = spec["hostname"].as_str().unwrap_or(id).to_owned();
        let Value::Object(spec) = spec else {
            return Err("its spec is no object".into());
        };
        let namespaces = list(object(spec, "linux")?, "namespaces")?;
        namespaces.retain(|namespace| namespace["type"] != "network");
        match net {
            "none" => namespaces.push(json!({"type": "network"})),
            "host" => {
                if Path::new(RESOLV_CONF).exists() {
                    // What is the host's, a container may not change.
                    bind(spec, Path::new(RESOLV_CONF), RESOLV_CONF, "ro")?;
                }
            }
            name => {
                let wish = self.wish(name, id, hostname, config)?;
                let place = Place::new(&config.root, &config.state, &wish.key);
                namespaces.push(json!({"type": "network", "path": place.netns()}));
                for (path, target) in place.files() {
                    bind(spec, &path, target, "rw")?;
                }
                let label = serde_json::to_string(&wish).map_err(|e| e.to_string())?;
                if check_label(LABEL, &label).is_err() {
                    let all = "--publish, --dns, --dns-search and --add-host";
                    return Err(format!("{all} have {} bytes in all, too many", label.len()));
                }
                labels.insert(LABEL.into(), label);
            }
        }
        Ok(())
    }

    /// # Errors
    /// A text that names an option that means nothing without a network of CNI's.
    fn is_alone(&self, net: &str) -> Result<(), String> {
        let port = self.publish.first().map(|it| format!("--publish {it}"));
        let dns = self.dns.first().map(|it| format!("--dns {it}"));
        let search = self.dns_search.first();
        let search = search.map(|it| format!("--dns-search {it}"));
        let host = self.add_host.first();
        let host = host.map(|it| format!("--add-host {}", it.name));
        match port.or(dns).or(search).or(host) {
            Some(option) => Err(format!(
                "{option}: not with --net {net}, but with a network's name"
            )),
            None => Ok(()),
        }
    }

    fn wish(&self, net: &str, id: &str, hostname: String, config: &Config) -> Result<Wish, String> {
        let found = List::find(&config.network.config_dirs, net);
        let found = found.map_err(|e| format!("--net {net}: {e}"))?;
        for (place, port) in self.publish.iter().enumerate() {
            if !found.takes_ports() {
                return Err(format!(
                    "--publish {port}: no plugin of network {net} takes ports"
                ));
            }
            if self.publish[..place].iter().any(|it| it.conflicts(port)) {
                return Err(format!(
                    "--publish {port}: that port of the host's is given twice"
                ));
            }
        }
        Ok(Wish {
            key: network::new_key(id)?,
            network: net.to_owned(),
            hostname,
            ports: self.publish.clone(),
            dns: self.dns.clone(),
            search: self.dns_search.clone(),
            hosts: self.add_host.clone(),
        })
    }
}

/// Mounts a file, unless something else is to be there.
fn bind(spec: &mut Map<String, Value>, from: &Path, to: &str, mode: &str) -> Result<(), String> {
    let mounts = list(spec, "mounts")?;
    if !mounts.iter().any(|mount| mount["destination"] == to) {
        mounts.push(json!({
            "destination": to, "type": "bind", "source": from, "options": ["rbind", mode],
        }));
    }
    Ok(())
}

/// `network ls`.
pub fn ls(config: &Config, as_json: bool) -> Result<(), String> {
    let row = |(file, list): (std::path::PathBuf, Result<List, String>)| {
        let (name, plugins) = match &list {
            Ok(list) => (
                list.name.as_str(),
                list.types().unwrap_or_default().join(","),
            ),
            Err(e) => ("-", e.clone()),
        };
        json!({"name": name, "plugins": plugins, "file": file})
    };
    let all = List::all(&config.network.config_dirs);
    let all: Vec<Value> = all.into_iter().map(row).collect();
    rows(&["name", "plugins", "file"], &all, as_json)
}

/// What `inspect` tells of a container's network.
pub fn about(config: &Config, labels: &HashMap<String, String>) -> Option<Value> {
    let wish = network::wish(labels).ok()??;
    let place = Place::new(&config.root, &config.state, &wish.key);
    let made = record::read(&place.record).ok();
    let addresses = made.map(|made| made.addresses()).unwrap_or_default();
    let addresses: Vec<IpAddr> = addresses.into_iter().map(|(address, _)| address).collect();
    let ports: Vec<String> = wish.ports.iter().map(Port::to_string).collect();
    Some(json!({"name": wish.network, "addresses": addresses, "ports": ports}))
}

/// Takes away a network that is no container's.
///
/// # Errors
/// The helper's.
pub async fn remove(config: &Config, wish: Wish) -> Result<(), String> {
    let reaper = Reaper::new().map_err(|e| e.to_string())?;
    let all = Rc::clone(&reaper);
    let reap = tokio::task::spawn_local(async move { all.run(&|_: u32, _: ExitStatus| ()).await });
    let done = Order::new(Action::Detach, config, wish).run(&reaper).await;
    reap.abort();
    done
}

/// How the helper ends: it tells the daemon on stdout why it could not do what it was told.
pub fn helped(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = super::output::line(&e);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_or_refused() {
        for good in [
            "80:8080",
            "80:8080/tcp",
            "53:53/udp",
            "127.0.0.1:80:8080",
            "[::1]:80:8080/udp",
        ] {
            let read = port(good).unwrap().to_string();
            assert_eq!(read, good.trim_end_matches("/tcp"));
        }
        for bad in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "80:65536",
            "x:80",
            "80:80/sctp",
            "80:80/",
            "1.2.3:80:80",
            "::1:80:80",
            "80-90:80",
            "80:80/tcp/tcp",
            "1.2.3.4:80",
        ] {
            assert!(port(bad).is_err(), "{bad}");
        }
        for bad in ["", "a", "a:", "a:b", ":1.2.3.4", "a b:1.2.3.4"] {
            assert!(host(bad).is_err(), "{bad}");
        }
        assert_eq!(host("a:fd00::1").unwrap().address, "fd00::1".parse().ok());
        assert_eq!(host("a:host-gateway").unwrap().address, None);
        for bad in ["", "a/b", ".", "-x", "a b"] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(word("a b").is_err());
    }

    #[test]
    fn the_host_s_resolver_comes_with_its_network() {
        let mut spec = json!({"linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]}});
        let mut labels = HashMap::new();
        let net = |net: &str| Net {
            net: Some(net.into()),
            ..Net::default()
        };
        let config = Config::default();
        net("host")
            .change(&mut spec, "x", &config, &mut labels)
            .unwrap();
        assert_eq!(spec["linux"]["namespaces"], json!([{"type": "pid"}]));
        if Path::new(RESOLV_CONF).exists() {
            assert_eq!(spec["mounts"][0]["options"], json!(["rbind", "ro"]));
        }
        net("none")
            .change(&mut spec, "x", &config, &mut labels)
            .unwrap();
        let both = json!([{"type": "pid"}, {"type": "network"}]);
        assert_eq!(spec["linux"]["namespaces"], both);
        assert!(labels.is_empty());
        let published = Net {
            publish: vec![port("80:80").unwrap()],
            ..Net::default()
        };
        let error = published
            .change(&mut spec, "x", &config, &mut labels)
            .unwrap_err();
        assert!(
            error.starts_with("--publish 80:80: not with --net none"),
            "{error}"
        );
    }
}
