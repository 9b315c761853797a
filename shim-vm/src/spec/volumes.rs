// SPDX-License-Identifier: Apache-2.0
//! What of a container's mounts is of the host's.

use super::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The two fields by which a mount, or a container, says whose ids are whose.
const MAPPINGS: [&str; 2] = ["uidMappings", "gidMappings"];

/// A bind mount of the host's, to be shown to the guest.
#[derive(Debug, PartialEq)]
pub struct Volume {
    pub source: PathBuf,
    pub readonly: bool,
    /// So is all that is mounted in it.
    pub recursively: bool,
    /// What the host mounts in it later appears in it.
    pub follows: bool,
    /// Without what else is mounted in it.
    pub alone: bool,
    /// What processes share there is memory, which must be the guest's own.
    pub memory: bool,
    /// Its files are shown with other owners.
    pub owners: Option<Owners>,
    /// Its place among the mounts.
    pub(super) mount: usize,
}

impl Volume {
    /// A file that is no mount of the container's.
    pub fn file(source: PathBuf, readonly: bool) -> Self {
        Self {
            source,
            readonly,
            recursively: readonly,
            follows: false,
            alone: true,
            memory: false,
            owners: None,
            mount: usize::MAX,
        }
    }
}

/// Which owners are shown as which, as the kernel reads it (user_namespaces(7)): lines
/// `first-on-disk first-shown count`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Owners {
    pub users: String,
    pub groups: String,
    /// Also of what is mounted below.
    pub below: bool,
}

impl Owners {
    /// Takes them out of a mount, of a container with its own `maps`: the guest is shown what comes of them.
    fn take(mount: &mut Value, maps: &[Value; 2]) -> Result<Option<Self>, Refusal> {
        let name = mount["destination"].to_string();
        let mut says = false;
        let mut below = false;
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| {
                let is = option == "idmap" || option == "ridmap";
                says |= is;
                below |= option == "ridmap";
                !is
            });
        }
        let own = MAPPINGS.map(|field| {
            let fields = mount.as_object_mut();
            fields.and_then(|fields| fields.remove(field))
        });
        let has =
            |map: &Option<Value>| map.as_ref().is_some_and(|map| map != &Value::Array(vec![]));
        let [users, groups] = match own {
            [users, groups] if has(&users) && has(&groups) => {
                [users, groups].map(Option::unwrap_or_default)
            }
            [users, groups] if has(&users) || has(&groups) => {
                let why = format!("mounts: {name}: {MAPPINGS:?}: one without the other");
                return Err(Refusal::Broken(why));
            }
            _ if says => maps.clone(),
            _ => return Ok(None),
        };
        let map = |field: &str, map: &Value| {
            let wrong = || Refusal::Broken(format!("mounts: {name}: {field}: {map}"));
            lines(map).ok_or_else(wrong)
        };
        Ok(Some(Self {
            users: map(MAPPINGS[0], &users)?,
            groups: map(MAPPINGS[1], &groups)?,
            below,
        }))
    }
}

fn lines(map: &Value) -> Option<String> {
    let line = |entry: &Value| {
        let number = |field: &str| u32::try_from(entry[field].as_u64()?).ok();
        let [disk, shown, size] = ["containerID", "hostID", "size"].map(number);
        Some(format!("{} {} {}\n", disk?, shown?, size?))
    };
    let entries = map.as_array().filter(|entries| !entries.is_empty())?;
    entries.iter().map(line).collect()
}

/// Without a source of the host's, a mount has nothing of it.
///
/// # Errors
/// If a mount's owners make no sense.
pub(super) fn volumes(spec: &mut Value) -> Result<Vec<Volume>, Refusal> {
    let mut volumes = Vec::new();
    let maps = MAPPINGS.map(|field| spec["linux"][field].clone());
    let mounts = spec["mounts"].as_array_mut();
    for (place, mount) in mounts.into_iter().flatten().enumerate() {
        let options: Vec<&str> = mount["options"]
            .as_array()
            .map(|list| list.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let has = |name: &str| options.contains(&name);
        if !(mount["type"] == "bind" || has("bind") || has("rbind")) {
            continue;
        }
        let memory = mount["destination"] == "/dev/shm";
        let source = Path::new(mount["source"].as_str().unwrap_or_default());
        // The kernel's own: the guest has them too.
        let kernels = ["/proc", "/sys", "/dev"];
        if kernels.iter().any(|own| source.starts_with(own)) && !memory {
            continue;
        }
        let mut volume = Volume {
            source: source.into(),
            readonly: has("ro") || has("rro"),
            recursively: has("rro"),
            follows: ["slave", "rslave", "shared", "rshared"]
                .into_iter()
                .any(has),
            alone: has("bind") && !has("rbind"),
            memory,
            owners: None,
            mount: place,
        };
        let owners = Owners::take(mount, &maps)?;
        // Memory of the guest's belongs to nobody else.
        volume.owners = owners.filter(|_| !memory);
        volumes.push(volume);
    }
    Ok(volumes)
}
