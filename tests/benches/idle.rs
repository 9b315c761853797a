// SPDX-License-Identifier: Apache-2.0
//! What shims do when there is nothing to do.

use crate::contender::Contender;
use crate::pod::Pod;
use crate::process;
use harness::{proc, test};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Of each contender, each shim with one sleeping container.
const SHIMS: usize = 50;
const TIME: Duration = Duration::from_secs(60);

/// `{<contender>: {shims, seconds, wakeups, cpu_s}}`, sums over all its shims; all contenders are
/// watched for the same minute.
pub fn measure(contenders: &[Contender]) -> Value {
    test::measure(Duration::from_secs(600), async |test| {
        let mut pods: Vec<Vec<Pod>> = Vec::new();
        for contender in contenders {
            let mut own = Vec::new();
            for n in 0..SHIMS {
                let id = format!("{}-{n}", contender.key.replace('.', "-"));
                own.push(Pod::new(test, contender, &id).await);
            }
            pods.push(own);
        }
        let costs = |pods: &[Pod]| -> (u64, f64) {
            let pids = || pods.iter().map(|pod| pod.shim.pid());
            (
                pids().map(proc::wakeups).sum(),
                pids().map(process::cpu).sum(),
            )
        };
        let mut minute = tokio::time::interval(TIME);
        minute.tick().await;
        let begin = Instant::now();
        let before: Vec<_> = pods.iter().map(|pods| costs(pods)).collect();
        minute.tick().await;
        let mut all = Map::new();
        for ((contender, pods), before) in contenders.iter().zip(&pods).zip(before) {
            let now = costs(pods);
            let value = json!({
                "shims": SHIMS,
                "seconds": begin.elapsed().as_secs_f64(),
                // Unknown where threads that were counted before have ended.
                "wakeups": now.0.checked_sub(before.0),
                "cpu_s": now.1 - before.1,
            });
            all.insert(contender.key.to_owned(), value);
        }
        for pod in pods.into_iter().flatten() {
            pod.end().await;
        }
        all.into()
    })
}
