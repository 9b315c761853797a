// SPDX-License-Identifier: Apache-2.0
//! What a config.json says of the machine it wants: its limits, and, of a pod's first container, those
//! of all its containers together.

use crate::config::Wanted;
use serde_json::Value;

/// Where CRI says what a pod's containers may use, beside its first one, which uses nothing.
const POD: &str = "io.kubernetes.cri.sandbox-";
/// Of a processor (cgroups(7)).
const SHARES: u64 = 1024;
const PERIOD: u64 = 100_000;

/// What may be used, as the API has it: 0 or less says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resources {
    pub memory: i64,
    pub quota: i64,
    pub period: i64,
    pub shares: i64,
}

impl Resources {
    /// The limit of memory, in bytes.
    pub fn memory(&self) -> Option<u64> {
        positive(self.memory)
    }

    /// Processors, rounded up: those it is limited to, else those that are kept for it.
    pub fn vcpus(&self) -> Option<u32> {
        let period = positive(self.period).unwrap_or(PERIOD);
        let quota = positive(self.quota).map(|quota| quota.div_ceil(period));
        let shares = || positive(self.shares).map(|shares| shares.div_ceil(SHARES));
        let vcpus = quota.or_else(shares);
        vcpus.map(|n| u32::try_from(n).unwrap_or(u32::MAX))
    }
}

fn positive(n: i64) -> Option<u64> {
    u64::try_from(n).ok().filter(|&n| n > 0)
}

pub fn of(spec: &Value) -> Wanted {
    let resources = &spec["linux"]["resources"];
    let number = |part: &str, name: &str| resources[part][name].as_i64().unwrap_or_default();
    let own = Resources {
        memory: number("memory", "limit"),
        quota: number("cpu", "quota"),
        period: number("cpu", "period"),
        // A share is no limit: alone it says nothing of a container.
        shares: 0,
    };
    let annotations = spec["annotations"].as_object();
    let said = |name: &str| {
        let text = annotations?.get(&format!("{POD}{name}"))?.as_str()?;
        text.parse().ok()
    };
    let said = |name| said(name).unwrap_or_default();
    let pod = Resources {
        memory: said("memory"),
        quota: said("cpu-quota"),
        period: said("cpu-period"),
        shares: said("cpu-shares"),
    };
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    Wanted {
        memory: own.memory().max(pod.memory()),
        vcpus: own.vcpus().max(pod.vcpus()),
        annotations: annotations.into_iter().flatten().filter_map(text).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pods_first_container_wants_what_all_of_it_may_use() {
        let wanted = |memory: &str, quota: &str, shares: &str| {
            let wanted = of(&json!({
                "linux": {"resources": {"cpu": {"shares": 2}}},
                "annotations": {
                    "io.kubernetes.cri.sandbox-memory": memory,
                    "io.kubernetes.cri.sandbox-cpu-period": "50000",
                    "io.kubernetes.cri.sandbox-cpu-quota": quota,
                    "io.kubernetes.cri.sandbox-cpu-shares": shares,
                },
            }));
            (wanted.memory, wanted.vcpus)
        };
        assert_eq!(wanted("1000", "150000", "512"), (Some(1000), Some(3)));
        assert_eq!(wanted("0", "0", "1025"), (None, Some(2)));
        assert_eq!(wanted("0", "-1", "2"), (None, Some(1)));
        assert_eq!(wanted("much", "0", "0"), (None, None));
        let own = of(&json!({"linux": {"resources":
            {"memory": {"limit": 7}, "cpu": {"quota": 150_000, "shares": 9999}}}}));
        assert_eq!((own.memory, own.vcpus), (Some(7), Some(2)));
    }
}
