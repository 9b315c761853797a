// SPDX-License-Identifier: Apache-2.0
//! Namespaces of another container that one is to be in: where they are is known when its task is
//! created, and may be elsewhere at the next restart.

use crate::failure::{Failure, precondition};
use crate::manager::Manager;
use crate::names::Key;
use protos::services::containers::v1::Container;
use serde_json::Value;
use task::ProcessId;

/// What the path of such a namespace begins with in a spec, before the container's id.
pub const CONTAINER: &str = "container:";

impl Manager {
    /// The container's spec with the paths of what it joins, if it joins any.
    ///
    /// # Errors
    /// `FailedPrecondition`, if there is nobody to be joined.
    pub async fn joined(&self, namespace: &str, container: &Container) -> Result<Vec<u8>, Failure> {
        let spec = container.spec.as_ref().map(|spec| spec.value.clone());
        let spec = spec.unwrap_or_default();
        let word = CONTAINER.as_bytes();
        if !spec.windows(word.len()).any(|part| part == word) {
            return Ok(spec);
        }
        // What is no JSON is the runtime's to refuse.
        let Ok(mut json) = task::json::read_first::<Value>(&spec) else {
            return Ok(spec);
        };
        let namespaces = json.pointer_mut("/linux/namespaces");
        for one in namespaces
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let id = one["path"]
                .as_str()
                .and_then(|path| path.strip_prefix(CONTAINER));
            let Some(id) = id.map(str::to_owned) else {
                continue;
            };
            let kind = one["type"].as_str().unwrap_or_default().to_owned();
            let failed = |why: String| {
                let who = &container.id;
                Err(precondition(format!(
                    "{who}: the {kind} namespace of container {id:?}: {why}"
                )))
            };
            let pid = match self.init_to_join(namespace, container, &id, &kind).await {
                Ok(pid) => pid,
                Err(why) => return failed(why),
            };
            let name = if kind == "network" { "net" } else { &kind };
            one["path"] = format!("/proc/{pid}/ns/{name}").into();
        }
        Ok(json.to_string().into_bytes())
    }

    /// The pid of a container that runs, by the same runtime, and has such a namespace of its own.
    async fn init_to_join(
        &self,
        namespace: &str,
        container: &Container,
        id: &str,
        kind: &str,
    ) -> Result<u32, String> {
        let key = Key::new(namespace, id);
        let other = self.store.container(namespace, id).await;
        let other = other.map_err(|e| e.message)?;
        let name = |of: &Container| of.runtime.as_ref().map(|it| it.name.clone());
        if name(&other) != name(container) {
            return Err("it has another runtime".into());
        }
        let spec = other.spec.unwrap_or_default().value;
        let spec = task::json::read_first::<Value>(&spec).unwrap_or_default();
        let namespaces = spec["linux"]["namespaces"].as_array();
        let has_one = |all: &Vec<Value>| all.iter().any(|it| it["type"] == kind);
        if !namespaces.is_some_and(has_one) {
            return Err("it has none of its own".into());
        }
        let task = self.tasks.get(&key).ok();
        let pid = task.map_or(0, |task| task.pid.get());
        match self.intake.exit(&key, &ProcessId::Init) {
            None if pid != 0 => Ok(pid),
            _ => Err("it does not run".into()),
        }
    }
}
