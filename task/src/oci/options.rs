// SPDX-License-Identifier: Apache-2.0
//! The options a client gives with Create (`containerd.runc.v1.Options`), and as options.json.

use crate::error::{Error, Result};
use crate::json;
use protos::{Any, Name, any, runc, runtimeoptions};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// As in containerd's oci.proto; zero values are left out of the JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    #[serde(alias = "NoPivotRoot", skip_serializing_if = "is_default")]
    pub no_pivot_root: bool,
    #[serde(alias = "NoNewKeyring", skip_serializing_if = "is_default")]
    pub no_new_keyring: bool,
    /// A cgroup for the shim itself.
    #[serde(alias = "ShimCgroup", skip_serializing_if = "is_default")]
    pub shim_cgroup: String,
    /// Owner of the pipes given to the container.
    #[serde(alias = "IoUid", skip_serializing_if = "is_default")]
    pub io_uid: u32,
    #[serde(alias = "IoGid", skip_serializing_if = "is_default")]
    pub io_gid: u32,
    /// The OCI runtime; empty means runc.
    #[serde(alias = "BinaryName", skip_serializing_if = "is_default")]
    pub binary_name: String,
    /// Where the OCI runtime keeps its state; empty means [`DEFAULT_ROOT`].
    #[serde(alias = "Root", skip_serializing_if = "is_default")]
    pub root: String,
    #[serde(alias = "SystemdCgroup", skip_serializing_if = "is_default")]
    pub systemd_cgroup: bool,
    #[serde(alias = "CriuImagePath", skip_serializing_if = "is_default")]
    pub criu_image_path: String,
    #[serde(alias = "CriuWorkPath", skip_serializing_if = "is_default")]
    pub criu_work_path: String,
}

/// Where runc containers keep their state unless `root` says otherwise (P/init.go `RuncRoot`).
pub const DEFAULT_ROOT: &str = "/run/containerd/runc";

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Options {
    /// Reads the options of a request; an absent or empty Any gives the defaults (T10).
    ///
    /// # Errors
    /// A type that is not runc's Options, or bytes that do not decode; code Unknown.
    pub fn from_any(options: Option<&Any>) -> Result<Self> {
        let Some(options) = options.filter(|o| !o.type_url.is_empty() || !o.value.is_empty())
        else {
            return Ok(Self::default());
        };
        if let Some(options) = any::unpack::<runc::Options>(options) {
            return options
                .map(Self::from)
                .map_err(|e| refused(&runc::Options::full_name(), e));
        }
        if let Some(generic) = any::unpack::<runtimeoptions::Options>(options) {
            let name = runtimeoptions::Options::full_name();
            return Self::from_toml(&generic.map_err(|e| refused(&name, e))?);
        }
        Err(Error::Refused(format!(
            "type with url {}: not found",
            options.type_url
        )))
    }
}

impl Options {
    /// Options as CRI gives them to a runtime of any name (B13): TOML, in the message or a file.
    fn from_toml(options: &runtimeoptions::Options) -> Result<Self> {
        let body = match options.config_body.as_slice() {
            [] if options.config_path.is_empty() => return Ok(Self::default()),
            [] => std::fs::read(&options.config_path)
                .map_err(Error::io("open", &options.config_path))?,
            body => body.to_vec(),
        };
        let body = String::from_utf8(body).map_err(|e| refused("TOML", e))?;
        let table: Value = toml::from_str(&body).map_err(|e| refused("TOML", e))?;
        json::of_value(&table).map_err(|e| refused("TOML", e))
    }
}

fn refused(what: &str, why: impl std::fmt::Display) -> Error {
    Error::Refused(format!("options: {what}: {why}"))
}

impl From<runc::Options> for Options {
    fn from(options: runc::Options) -> Self {
        Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_any_gives_the_defaults() {
        assert_eq!(Options::from_any(None).unwrap(), Options::default());
        assert_eq!(
            Options::from_any(Some(&Any::default())).unwrap(),
            Options::default()
        );
    }

    /// B13: CRI sends generic options to runtimes of other names, and runc's are TOML in them.
    #[test]
    fn options_from_cri_are_toml() {
        let generic = |body: &str| {
            any::pack(&runtimeoptions::Options {
                config_body: body.into(),
                ..Default::default()
            })
        };
        let toml = "BinaryName = \"crun\"\nRoot = \"/r\"\nSystemdCgroup = true\nUnknown = 1\n";
        let options = Options::from_any(Some(&generic(toml))).unwrap();
        let expected = Options {
            binary_name: "crun".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            ..Options::default()
        };
        assert_eq!(options, expected);
        assert_eq!(
            Options::from_any(Some(&generic(""))).unwrap(),
            Options::default()
        );
        let text = Options::from_any(Some(&generic("IoUid = \"x\"")))
            .unwrap_err()
            .to_string();
        assert!(text.contains("IoUid"), "{text}");
    }

    #[test]
    fn a_foreign_or_broken_any_is_refused_by_name() {
        let foreign = Any {
            type_url: "x.Y".into(),
            value: vec![],
        };
        let text = Options::from_any(Some(&foreign)).unwrap_err().to_string();
        assert_eq!(text, "type with url x.Y: not found");
        let broken = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: vec![0xff],
        };
        let text = Options::from_any(Some(&broken)).unwrap_err().to_string();
        assert!(
            text.starts_with("options: containerd.runc.v1.Options: "),
            "{text}"
        );
    }
}
