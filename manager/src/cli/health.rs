// SPDX-License-Identifier: Apache-2.0
//! The health check that a container is given, and that it has.

use crate::config::Span;
use crate::health::{Check, EXTENSION, LABEL, STATUS, Shape};
use crate::restart;
use crate::store::Labels;
use clap::Args;
use protos::Timestamp;
use protos::services::containers::v1::Container;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Clone, Debug, Default, Args)]
pub struct HealthFlags {
    /// A command of its shell that tells by its exit code whether it is well
    #[arg(long, value_name = "COMMAND", value_parser = command)]
    health_cmd: Option<String>,
    /// How long to wait between checks; 30s unless said
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_interval: Option<u64>,
    /// How long a check may take before it is killed, and has failed; 30s unless said
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_timeout: Option<u64>,
    /// How many checks must fail one after the other; 3 unless said
    #[arg(long, value_name = "NUMBER", value_parser = retries)]
    health_retries: Option<u32>,
    /// For how long after its start checks may fail without being counted
    #[arg(long, value_name = "TIME", value_parser = time)]
    health_start_period: Option<u64>,
    /// No check, also if its image has one
    #[arg(long, conflicts_with = "health_cmd")]
    no_healthcheck: bool,
}

fn command(text: &str) -> Result<String, String> {
    let is_one = !text.trim().is_empty();
    is_one
        .then(|| text.to_owned())
        .ok_or_else(|| "no command".into())
}

fn time(text: &str) -> Result<u64, String> {
    let Span(time) = text.parse()?;
    let nanos = u64::try_from(time.as_nanos()).ok();
    let nanos = nanos.filter(|_| time >= Duration::from_millis(10));
    nanos.ok_or_else(|| "less than 10ms, or too long".into())
}

fn retries(text: &str) -> Result<u32, String> {
    let retries = text.parse().ok().filter(|&number| number > 0);
    retries.ok_or_else(|| "not a number of checks".into())
}

impl HealthFlags {
    /// Has a container's labels say it; what is not said stays as an image has it.
    ///
    /// # Errors
    /// A text that names the option that means nothing.
    pub fn note(&self, labels: &mut Labels) -> Result<(), String> {
        let is_for_unhealthy = restart::is_for_unhealthy(labels);
        if self.no_healthcheck {
            labels.remove(LABEL);
        }
        let known = labels.get(LABEL).map(|label| serde_json::from_str(label));
        let mut shape: Shape = known
            .transpose()
            .map_err(|e| format!("label {LABEL}: {e}"))?
            .unwrap_or_default();
        if let Some(command) = &self.health_cmd {
            shape.test = vec!["CMD-SHELL".into(), command.clone()];
        }
        let words: Vec<&str> = shape.test.iter().map(String::as_str).collect();
        let has_one = !matches!(words[..], [] | ["NONE"]);
        for (option, said, of) in [
            (
                "--health-interval",
                self.health_interval,
                &mut shape.interval,
            ),
            ("--health-timeout", self.health_timeout, &mut shape.timeout),
            (
                "--health-start-period",
                self.health_start_period,
                &mut shape.start_period,
            ),
        ] {
            if said.is_some() && !has_one {
                return Err(format!("{option} needs --health-cmd"));
            }
            *of = said.unwrap_or(*of);
        }
        if self.health_retries.is_some() && !has_one {
            return Err("--health-retries needs --health-cmd".into());
        }
        shape.retries = self.health_retries.unwrap_or(shape.retries);
        if !has_one {
            labels.remove(LABEL);
            return match is_for_unhealthy {
                true => Err("--restart on-unhealthy needs --health-cmd".into()),
                false => Ok(()),
            };
        }
        let label = serde_json::to_string(&shape).map_err(|e| e.to_string())?;
        Check::read(&label).map_err(|e| format!("label {LABEL}: {e}"))?;
        labels.insert(LABEL.into(), label);
        Ok(())
    }
}

/// How a container is, if it has a check: its status, and of one that runs the latest checks.
pub fn of(container: &Container) -> Option<Value> {
    let known = container.extensions.get(EXTENSION);
    let known = known.and_then(|it| serde_json::from_slice::<Value>(&it.value).ok());
    let Some(mut known) = known else {
        return container
            .labels
            .get(STATUS)
            .map(|status| json!({"status": status}));
    };
    for ran in known["log"].as_array_mut().into_iter().flatten() {
        let number = |n: usize| ran["at"][n].as_i64().unwrap_or_default();
        let at = Timestamp {
            seconds: number(0),
            nanos: i32::try_from(number(1)).unwrap_or(0),
        };
        ran["at"] = super::output::time(Some(at)).into();
    }
    Some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_check_is_changed_as_said() {
        let image = r#"{"Test":["CMD","x"],"Interval":5}"#;
        let mut labels = Labels::from([(LABEL.to_owned(), image.to_owned())]);
        let flags = HealthFlags {
            health_retries: Some(7),
            ..Default::default()
        };
        flags.note(&mut labels).unwrap();
        let shape: Shape = serde_json::from_str(&labels[LABEL]).unwrap();
        assert_eq!((shape.interval, shape.retries), (5, 7));
        let none = HealthFlags {
            no_healthcheck: true,
            ..Default::default()
        };
        none.note(&mut labels).unwrap();
        assert!(labels.is_empty());
        assert!(
            flags
                .note(&mut labels)
                .unwrap_err()
                .contains("--health-retries")
        );
        labels.insert(LABEL.into(), r#"{"Test":["NONE"]}"#.into());
        HealthFlags::default().note(&mut labels).unwrap();
        assert!(labels.is_empty());
        labels.insert(LABEL.into(), r#"{"Test":["x","y"]}"#.into());
        let error = HealthFlags::default().note(&mut labels).unwrap_err();
        assert!(error.contains(LABEL), "{error}");
        for text in ["", "5", "0s", "1ms", "soon"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert!(retries("0").is_err() && command(" ").is_err());
    }
}
