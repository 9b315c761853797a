// SPDX-License-Identifier: Apache-2.0
//! Metrics of the Tasks service: the statistics of the tasks that the filters choose.

use crate::failure::Failure;
use crate::filter::{Fields, Filters};
use crate::manager::Manager;
use crate::tasks::Task;
use protos::services::tasks::v1::{MetricsRequest, MetricsResponse};
use protos::task::StatsRequest;
use protos::types::Metric;
use std::rc::Rc;

impl Fields for Task {
    /// As plugins/services/tasks/local.go has it.
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["id"] => Some(self.key().id.clone()),
            ["namespace"] => Some(self.key().namespace.clone()),
            _ => None,
        }
    }
}

pub(super) async fn metrics(
    manager: Rc<Manager>,
    namespace: String,
    request: MetricsRequest,
) -> Result<MetricsResponse, Failure> {
    let filters = Filters::parse(&request.filters)?;
    let mut asked = Vec::new();
    for task in manager.tasks.of_namespace(&namespace) {
        if !filters.matches(&*task) {
            continue;
        }
        let manager = Rc::clone(&manager);
        asked.push(tokio::task::spawn_local(async move {
            let ask = StatsRequest {
                id: task.id().to_owned(),
            };
            let stats = manager.ask(&task, &ask).await;
            (task.id().to_owned(), stats)
        }));
    }
    let mut metrics = Vec::with_capacity(asked.len());
    for answer in asked {
        match answer.await {
            Ok((id, Ok(stats))) => metrics.push(Metric {
                timestamp: Some(task::event::now()),
                id,
                data: stats.stats,
            }),
            Ok((id, Err(e))) => log::debug!("{namespace}/{id}: stats: {e}"),
            Err(_) => {}
        }
    }
    Ok(MetricsResponse { metrics })
}
