// SPDX-License-Identifier: Apache-2.0
//! A container's image: chosen, held until there is a record of the container, and what it says of
//! the process (OCI image spec, config.md).

use super::process::{list, object};
use super::users::Users;
use super::{image, signal};
use crate::config::Config;
use crate::images::Made;
use crate::store::Labels;
use crate::{halt, health};
use clap::{Args, ValueEnum};
use protos::services::containers::v1::Container;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// Bytes of a name that is made of an image's, at most.
const LONGEST: usize = 40;

/// What a container of an image may be told, and no other.
#[derive(Clone, Debug, Default, Args)]
pub struct OfImage {
    /// The container's name, if it is made of an image; by default it is the image's, and a number
    #[arg(long, conflicts_with_all = ["rootfs", "bundle"], value_parser = name)]
    pub name: Option<String>,
    /// What its command is given to, in place of what the image says; empty for nothing
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["rootfs", "bundle"])]
    entrypoint: Option<String>,
    /// When to get the image from its registry
    #[arg(long, value_enum, default_value_t, conflicts_with_all = ["rootfs", "bundle"])]
    pull: Pull,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Pull {
    /// If it is not here
    #[default]
    Missing,
    Always,
    Never,
}

fn name(text: &str) -> Result<String, String> {
    let checked = crate::names::check_id(text);
    checked.map(|()| text.to_owned()).map_err(|e| e.to_string())
}

/// What the program that has the images says of one.
#[derive(Debug, Deserialize)]
struct Answer {
    id: String,
    name: Option<String>,
    layers: Vec<String>,
    #[serde(default)]
    config: Option<ImageConfig>,
    passwd: String,
    group: String,
}

/// Of an image's configuration, what makes a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ImageConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    healthcheck: Option<Value>,
    volumes: Option<BTreeMap<String, Value>>,
    exposed_ports: Option<BTreeMap<String, Value>>,
}

/// An image that stays as long as this lives.
pub struct Chosen {
    asked: String,
    id: String,
    name: Option<String>,
    layers: Vec<String>,
    config: ImageConfig,
    entrypoint: Option<String>,
    pub users: Users,
    _held: Held,
}

/// The program that holds it: until its stdin ends.
struct Held(Child);

impl Drop for Held {
    #[allow(
        clippy::disallowed_methods,
        reason = "a client's only child, which ends at once"
    )]
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl OfImage {
    /// The image called `asked`, which is got first if it is to be.
    ///
    /// # Errors
    /// A text, unless the program has said why.
    pub fn choose(&self, config: &Config, asked: &str) -> Result<Chosen, String> {
        if self.pull == Pull::Always {
            pull(config, asked)?;
        }
        let mut chosen = ask(config, asked)?;
        if chosen.is_none() && self.pull == Pull::Missing {
            pull(config, asked)?;
            chosen = ask(config, asked)?;
        }
        let (answer, held) = chosen.ok_or_else(|| format!("{asked}: no such image"))?;
        Ok(Chosen {
            asked: asked.to_owned(),
            id: answer.id,
            name: answer.name,
            layers: answer.layers,
            config: answer.config.unwrap_or_default(),
            entrypoint: self.entrypoint.clone(),
            users: Users::of(&answer.passwd, &answer.group),
            _held: held,
        })
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a client's only child: nobody else waits for any"
)]
fn pull(config: &Config, asked: &str) -> Result<(), String> {
    let mut command = image::program(config)?;
    command.args(image::pull(config, asked, false));
    // What a container prints is all that there is to be on stdout.
    let got = command.stdin(Stdio::null()).output();
    let got = got.map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    match got.status.success() {
        true => Ok(()),
        false => Err(said_by_program(&got.stderr)),
    }
}

/// Why the program did not do something.
fn said_by_program(stderr: &[u8]) -> String {
    let said = String::from_utf8_lossy(stderr);
    let said = said.trim().trim_start_matches("dunnage: ");
    match said.is_empty() {
        true => "dunnage-image: it ended without a word".to_owned(),
        false => said.to_owned(),
    }
}

/// Asks for an image that is here.
fn ask(config: &Config, asked: &str) -> Result<Option<(Answer, Held)>, String> {
    let mut command = image::program(config)?;
    command.args(["choose", "--", asked]);
    let failed =
        |command: &Command, e: &dyn std::fmt::Display| format!("{:?}: {e}", command.get_program());
    let spawned = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut held = Held(spawned.spawn().map_err(|e| failed(&command, &e))?);
    let mut line = Vec::new();
    if let Some(stdout) = held.0.stdout.take() {
        let read = BufReader::new(stdout).read_until(b'\n', &mut line);
        read.map_err(|e| failed(&command, &e))?;
    }
    if line.is_empty() {
        let mut said = Vec::new();
        if let Some(mut stderr) = held.0.stderr.take() {
            stderr
                .read_to_end(&mut said)
                .map_err(|e| failed(&command, &e))?;
        }
        return Err(said_by_program(&said));
    }
    let answer: Option<Answer> = task::json::read(&line).map_err(|e| failed(&command, &e))?;
    Ok(answer.map(|answer| (answer, held)))
}

impl Chosen {
    /// What its container is called if nobody says so: other than any other.
    ///
    /// # Errors
    /// A text, if there is no randomness.
    pub fn new_name(&self) -> Result<String, String> {
        let whole = self.name.as_deref().unwrap_or("image");
        let last = whole.rsplit('/').next().unwrap_or(whole);
        let last = last.split([':', '@']).next().unwrap_or(last);
        let words = last.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let mut name = words.join("-");
        name.truncate(LONGEST);
        Ok(format!("{}-{}", name.trim_end_matches('-'), random(3)?))
    }

    /// What the container's process is, if it is told `command`.
    ///
    /// # Errors
    /// A text, if it is nothing.
    pub fn command(&self, command: &[String]) -> Result<Vec<String>, String> {
        let of_image = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let mut words = match &self.entrypoint {
            None => of_image(&self.config.entrypoint),
            Some(program) if program.is_empty() => Vec::new(),
            Some(program) => vec![program.clone()],
        };
        match command {
            // It is for the image's own entrypoint.
            [] if self.entrypoint.is_none() => words.extend(of_image(&self.config.cmd)),
            command => words.extend_from_slice(command),
        }
        match words.is_empty() {
            true => Err(format!(
                "{}: the image has no command, and none was given",
                self.asked
            )),
            false => Ok(words),
        }
    }

    /// Makes a spec's process as the image says.
    ///
    /// # Errors
    /// A text that names what in the image means nothing.
    pub fn configure(&self, spec: &mut Map<String, Value>) -> Result<(), String> {
        let bad = |e: String| format!("{}: {e}", self.asked);
        let process = object(spec, "process")?;
        let env = list(process, "env")?;
        for variable in self.config.env.iter().flatten() {
            let begin = variable.split_inclusive('=').next().unwrap_or(variable);
            env.retain(|old| !old.as_str().is_some_and(|old| old.starts_with(begin)));
            env.push(variable.as_str().into());
        }
        if let Some(dir) = self
            .config
            .working_dir
            .as_deref()
            .filter(|it| !it.is_empty())
        {
            let dir = format!("/{}", dir.trim_start_matches('/'));
            process.insert("cwd".into(), dir.into());
        }
        if let Some(user) = self.config.user.as_deref().filter(|it| !it.is_empty()) {
            let user = self.users.of_image(user).map_err(bad)?;
            process.insert("user".into(), user.spec());
        }
        Ok(())
    }

    /// Has a container's labels say how the image's health is checked.
    pub fn note_check(&self, labels: &mut Labels) {
        if let Some(check) = &self.config.healthcheck {
            labels.insert(health::LABEL.into(), check.to_string());
        }
    }

    fn made(&self) -> Result<Made, String> {
        let keys = |of: &Option<BTreeMap<String, Value>>| {
            let keys = of.iter().flat_map(BTreeMap::keys);
            keys.cloned().collect()
        };
        Ok(Made {
            id: self.id.clone(),
            name: self.name.clone(),
            layers: self.layers.clone(),
            token: random(10)?,
            exposed_ports: keys(&self.config.exposed_ports),
            volumes: keys(&self.config.volumes),
        })
    }

    /// Says in a container's record what it is made of, and how it is stopped.
    ///
    /// # Errors
    /// A text, if the signal is none, or there is no randomness.
    pub fn note(&self, container: &mut Container) -> Result<(), String> {
        self.made()?.note(container);
        container.image = self.name.as_ref().unwrap_or(&self.id).clone();
        let signal = self.config.stop_signal.as_deref();
        if let Some(signal) = signal.filter(|it| !it.is_empty()) {
            let checked = signal::number(signal);
            checked.map_err(|e| format!("{}: its stop signal: {e}", self.asked))?;
            let labels = &mut container.labels;
            labels.entry(halt::SIGNAL.into()).or_insert(signal.into());
        }
        Ok(())
    }
}

/// So many random bytes, in hexadecimal.
fn random(bytes: usize) -> Result<String, String> {
    let mut random = vec![0; bytes];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut it| it.read_exact(&mut random));
    read.map_err(|e| format!("/dev/urandom: {e}"))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
