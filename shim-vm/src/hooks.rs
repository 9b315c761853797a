// SPDX-License-Identifier: Apache-2.0
//! Hooks: programs of the host's that config.json wants run as a container is made, has started and
//! is gone (OCI runtime specification, config.md). Docker and nerdctl make networks by them: to a
//! hook, the container's process is the VM's, whose network namespace is the container's.

use crate::spec::Refusal;
use protos::ttrpc::Context;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use task::Command;
use task::json;
use task::oci::command::{self, Streams};
use task::reaper::Reaper;
use task::trace;

/// How long the hooks of a container that is gone may take.
const POSTSTOP: Duration = Duration::from_secs(10);

/// A container's, in their order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hooks {
    /// `prestart`, and then `createRuntime`: before the guest makes the container.
    pub create: Vec<Hook>,
    /// After it has started.
    pub poststart: Vec<Hook>,
    /// After it is deleted.
    pub poststop: Vec<Hook>,
}

/// A program, as config.json names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    path: PathBuf,
    /// The first is the program's own name.
    #[serde(default)]
    args: Vec<String>,
    /// Without a list it has the shim's.
    #[serde(
        default,
        deserialize_with = "variables",
        serialize_with = "write_variables"
    )]
    env: Option<Vec<(String, String)>>,
    /// Seconds.
    timeout: Option<u64>,
}

/// A hook's environment, each text of it `NAME=value`.
fn variables<'de, D: Deserializer<'de>>(
    list: D,
) -> Result<Option<Vec<(String, String)>>, D::Error> {
    let list = Option::<Vec<String>>::deserialize(list)?;
    let pair = |text: String| match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(D::Error::custom(format!(
            "env {text:?}: must be NAME=value"
        ))),
    };
    list.map(|list| list.into_iter().map(pair).collect())
        .transpose()
}

fn write_variables<S: Serializer>(
    variables: &Option<Vec<(String, String)>>,
    to: S,
) -> Result<S::Ok, S::Error> {
    let texts = variables.as_ref().map(|pairs| {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
    });
    texts.serialize(to)
}

/// What hooks are told of their container, on stdin.
pub struct About<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    /// The VM's; 0 once that is gone.
    pub pid: u32,
    /// "creating", "running" or "stopped".
    pub status: &'a str,
}

impl Hooks {
    /// Takes those that run on the host out of a config.json; `startContainer` runs inside the
    /// container, and is the guest's.
    ///
    /// # Errors
    /// If they are not what they should be; for `createContainer`, programs of the host's that run
    /// in the container's namespaces.
    pub fn take(spec: &mut Value) -> Result<Self, Refusal> {
        let mut nothing = Map::new();
        let all = spec.get_mut("hooks").and_then(Value::as_object_mut);
        let all = all.unwrap_or(&mut nothing);
        let mut list = |kind: &str| {
            let list = all.remove(kind).unwrap_or_default();
            let parsed = json::of_value::<Vec<Hook>>(&list);
            parsed.map_err(|e| Refusal::Broken(format!("hooks.{kind}: {e}")))
        };
        let create = [list("prestart")?, list("createRuntime")?].concat();
        let (poststart, poststop) = (list("poststart")?, list("poststop")?);
        if !list("createContainer")?.is_empty() {
            return Err(Refusal::Unimplemented("hooks.createContainer".into()));
        }
        Ok(Self {
            create,
            poststart,
            poststop,
        })
    }
}

impl Hooks {
    /// Runs those of a container that is gone; a failure is in the log, and nobody's business.
    pub async fn run_poststop(&self, id: &str, bundle: &Path, reaper: &Reaper) {
        let about = About {
            id,
            bundle,
            pid: 0,
            status: "stopped",
        };
        let context = Context::within(POSTSTOP);
        if let Err(why) = run(&self.poststop, &about, reaper, &context).await {
            log::warn!("{id}: poststop: {why}");
        }
    }
}

/// Runs `hooks`, one after the other.
///
/// # Errors
/// What the first that failed said, and how it ended.
pub async fn run(
    hooks: &[Hook],
    about: &About<'_>,
    reaper: &Reaper,
    context: &Context,
) -> Result<(), String> {
    let state = json!({
        "ociVersion": "1.0.2",
        "id": about.id,
        "status": about.status,
        "pid": about.pid,
        "bundle": about.bundle,
    });
    for hook in hooks {
        let mut command = Command::new(&hook.path);
        let mut words = hook.args.iter();
        if let Some(name) = words.next() {
            command.arg0(name);
        }
        command.args(words).current_dir(about.bundle);
        trace::tell(&mut command, context);
        if let Some(env) = &hook.env {
            command.env_clear().envs(env.iter().cloned());
        }
        let context = match hook.timeout {
            Some(seconds) => &context.at_most(Duration::from_secs(seconds)),
            None => context,
        };
        let input = Streams::Fed(state.to_string().into_bytes());
        let ran = command::run(reaper, command, input, context).await;
        ran.map_err(|failure| failure.oci("hook").to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_gets_the_hooks_that_run_in_the_container() {
        let hook = |path: &str| json!([{"path": path, "args": ["h", path]}]);
        let mut spec = json!({"hooks": {
            "poststop": hook("/d"), "createRuntime": hook("/b"), "prestart": hook("/a"),
            "poststart": hook("/c"), "startContainer": hook("/e"), "createContainer": null,
        }});
        let hooks = Hooks::take(&mut spec).unwrap();
        assert_eq!(spec, json!({"hooks": {"startContainer": hook("/e")}}));
        let paths = |list: &[Hook]| -> Vec<String> {
            list.iter().map(|hook| hook.args[1].clone()).collect()
        };
        assert_eq!(paths(&hooks.create), ["/a", "/b"]);
        assert_eq!(paths(&hooks.poststart), ["/c"]);
        assert_eq!(paths(&hooks.poststop), ["/d"]);
        assert_eq!(Hooks::take(&mut json!({})).unwrap(), Hooks::default());
    }

    #[test]
    fn a_hook_that_is_none_is_named() {
        let mut spec = json!({"hooks": {"prestart": [{"args": []}]}});
        let why = Hooks::take(&mut spec).unwrap_err().to_string();
        assert_eq!(why, "config.json: hooks.prestart: 0: missing field `path`");
    }
}
