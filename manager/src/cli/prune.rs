// SPDX-License-Identifier: Apache-2.0
//! `prune`: all containers that have ended go.

use super::client::Client;
use super::run::NotRun;
use super::verbs::one_by_one;
use super::{control, show};
use crate::config::Config;
use crate::restart;
use protos::services::containers::v1::Container;
use protos::task_types::{Process, Status};

/// Whether nothing of it runs, or will: one that was only created, or that its policy starts again,
/// stays.
fn has_ended(container: &Container, task: Option<&Process>) -> bool {
    let is_stopped = task.is_none_or(|task| task.status == Status::Stopped as i32);
    let status = task.map(|task| task.exit_status);
    is_stopped && !restart::wants_restart(&container.labels, status)
}

/// Deletes them, and prints their ids.
pub async fn prune(
    client: &Client,
    config: &Config,
    namespace: &str,
    filters: &[String],
) -> Result<u8, String> {
    let containers = show::containers(client, filters).await?;
    let tasks = show::tasks(client).await?;
    let task = |id: &str| tasks.iter().find(|task| task.id == id);
    let ended = containers.iter().filter(|it| has_ended(it, task(&it.id)));
    let ids: Vec<String> = ended.map(|it| it.id.clone()).collect();
    let args = control::Delete::default();
    let delete = async |id: &str| {
        let deleted = control::delete(client, config, namespace, &args, id).await;
        let told = deleted.and_then(|()| super::output::line(id));
        told.map_err(|why| NotRun::refused(id, why))
    };
    Ok(one_by_one(&ids, delete).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_ended_for_good() {
        let task = |status| Process {
            status: status as i32,
            exit_status: 1,
            ..Default::default()
        };
        let plain = Container::default();
        let mut again = Container::default();
        again
            .labels
            .insert(restart::STATUS.into(), "running".into());
        again.labels.insert(restart::POLICY.into(), "always".into());
        assert!(has_ended(&plain, None));
        assert!(has_ended(&plain, Some(&task(Status::Stopped))));
        assert!(!has_ended(&plain, Some(&task(Status::Running))));
        assert!(!has_ended(&plain, Some(&task(Status::Paused))));
        assert!(!has_ended(&plain, Some(&task(Status::Created))));
        assert!(!has_ended(&again, Some(&task(Status::Stopped))));
        again.labels.insert(restart::STOPPED.into(), "true".into());
        assert!(has_ended(&again, Some(&task(Status::Stopped))));
    }
}
