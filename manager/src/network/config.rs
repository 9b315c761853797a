// SPDX-License-Identifier: Apache-2.0
//! Lists of CNI plugins: files in /etc/cni/net.d and the like, found by the name that they give their
//! network (CNI's SPEC.md, "Network configuration format").

use super::Port;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What a plugin says of itself that it takes ports.
const PORTS: &str = "portMappings";

/// A network: plugins that are run one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List {
    pub name: String,
    pub cni_version: String,
    pub plugins: Vec<Map<String, Value>>,
}

impl List {
    /// The network of this name.
    ///
    /// # Errors
    /// A text that names the network, and where it was looked for.
    pub fn find(dirs: &[PathBuf], name: &str) -> Result<Self, String> {
        let mut wrong = String::new();
        let mut names = Vec::new();
        for file in files(dirs) {
            match Self::read(&file) {
                Ok(list) if list.name == name => return Ok(list),
                Ok(list) => names.push(list.name),
                Err(e) => wrong.push_str(&format!("; {e}")),
            }
        }
        let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let there = match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(", "),
        };
        Err(format!(
            "no network {name:?} in {}, where there is {there}{wrong}",
            dirs.join(" or ")
        ))
    }

    /// Every network that can be read, with its file.
    pub fn all(dirs: &[PathBuf]) -> Vec<(PathBuf, Result<Self, String>)> {
        let read = |file: PathBuf| {
            let list = Self::read(&file);
            (file, list)
        };
        files(dirs).into_iter().map(read).collect()
    }

    /// # Errors
    /// A text that names the file, and what in it is no list of plugins.
    fn read(path: &Path) -> Result<Self, String> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let json = std::fs::read(path).map_err(|e| failed(&e))?;
        let read: Map<String, Value> = serde_json::from_slice(&json).map_err(|e| failed(&e))?;
        let text = |key: &str| read.get(key).and_then(Value::as_str).map(str::to_owned);
        let name = text("name").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| failed(&"it has no name"))?;
        let cni_version = text("cniVersion").unwrap_or_else(|| "0.1.0".into());
        if ["0.1.0", "0.2.0"].contains(&cni_version.as_str()) {
            let why = format!("cniVersion {cni_version} is too old, 0.3.0 is needed");
            return Err(failed(&why));
        }
        let plugins = match path.extension().is_some_and(|it| it == "conflist") {
            true => serde_json::from_value(read.get("plugins").cloned().unwrap_or(json!([])))
                .map_err(|e| failed(&format!("plugins: {e}")))?,
            false => vec![read],
        };
        let list = Self {
            name,
            cni_version,
            plugins,
        };
        match list.types() {
            Some(types) if !types.is_empty() => Ok(list),
            Some(_) => Err(failed(&"it has no plugins")),
            None => Err(failed(&"a plugin without a type")),
        }
    }

    /// The types of its plugins, if each has one.
    pub fn types(&self) -> Option<Vec<&str>> {
        let types = self.plugins.iter();
        types.map(|it| it.get("type")?.as_str()).collect()
    }

    /// Whether one of its plugins leads ports of the host's to a container.
    pub fn takes_ports(&self) -> bool {
        self.plugins
            .iter()
            .any(|plugin| has_capability(plugin, PORTS))
    }

    /// What plugin `place` is given on its stdin.
    pub fn request(&self, place: usize, ports: &[Port], previous: Option<&Value>) -> Value {
        let mut plugin = self.plugins[place].clone();
        if has_capability(&plugin, PORTS) && !ports.is_empty() {
            plugin.insert("runtimeConfig".into(), json!({PORTS: ports}));
        }
        plugin.remove("capabilities");
        plugin.insert("name".into(), self.name.as_str().into());
        plugin.insert("cniVersion".into(), self.cni_version.as_str().into());
        if let Some(previous) = previous {
            plugin.insert("prevResult".into(), previous.clone());
        }
        Value::Object(plugin)
    }
}

fn has_capability(plugin: &Map<String, Value>, name: &str) -> bool {
    let capabilities = plugin.get("capabilities");
    capabilities.is_some_and(|capabilities| capabilities[name] == true)
}

/// What may be a network, each directory's in the order of the names.
fn files(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for dir in dirs {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|file| {
            let extension = file.extension().and_then(|it| it.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        });
        files.sort_unstable();
        all.extend(files);
    }
    all
}
