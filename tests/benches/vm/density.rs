// SPDX-License-Identifier: Apache-2.0
//! What each of several VMs holds, of a template or booted, and what one more costs.

use super::first_output;
use crate::is_quick;
use harness::{Test, proc};
use serde_json::{Map, Value, json};

/// How many VMs there are when their memory is looked at.
pub const COUNTS: [usize; 3] = [1, 10, 30];
/// Of those, how many there are when it must be soon.
const QUICK: usize = 1;

/// `{<VMs>: <KiB>}`: the PSS of their QEMUs on average, while their containers sleep. Of VMs as `config` has them.
pub async fn measure(test: &Test, name: &str, config: &str) -> Value {
    let counts = if is_quick() { QUICK } else { COUNTS.len() };
    let (mut held, mut shims) = (Map::new(), Vec::new());
    for &count in &COUNTS[..counts] {
        while shims.len() < count {
            let id = format!("{name}-{}", shims.len());
            shims.push(first_output(test, &id, config).await.0);
        }
        let qemus = shims.iter().flat_map(|shim| proc::children(shim.pid()));
        let is_qemu = |pid: &i32| {
            let words = proc::words(*pid, "cmdline");
            words.first().is_some_and(|word| word.contains("qemu"))
        };
        let all: u64 = qemus.filter(is_qemu).map(proc::pss).sum();
        held.insert(count.to_string(), json!(all / count as u64));
    }
    for shim in shims {
        shim.stopped().await;
    }
    held.into()
}

/// KiB that one VM more costs, from the second count to the last.
pub fn slope(held: &Value) -> Option<f64> {
    let all = |count: usize| Some(held[count.to_string()].as_f64()? * count as f64);
    let [_, few, many] = COUNTS;
    Some((all(many)? - all(few)?) / (many - few) as f64)
}
