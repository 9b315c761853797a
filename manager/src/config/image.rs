// SPDX-License-Identifier: Apache-2.0
//! `[image]`: where images come from, and what gets them.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// The program; empty for the one beside ours, or else in PATH.
    pub program: PathBuf,
    /// Registries without TLS, as HOST or HOST:PORT.
    pub plain_http: Vec<String>,
    /// Registries, and where else what they have is, in the order in which it is asked for there.
    pub mirrors: BTreeMap<String, Vec<String>>,
}

impl Image {
    /// # Errors
    /// A text with the key that does not fit.
    pub fn check(&self) -> Result<(), String> {
        let program = &self.program;
        if program.is_relative() && !program.as_os_str().is_empty() {
            return Err(format!(
                "image.program: {program:?} is not an absolute path"
            ));
        }
        let plain = self.plain_http.iter();
        let plain = plain.map(|host| ("image.plain_http".to_owned(), host));
        let mirrors = self.mirrors.iter().flat_map(|(registry, hosts)| {
            let key = format!("image.mirrors.{registry:?}");
            let hosts = hosts.iter().chain([registry]);
            hosts.map(move |host| (key.clone(), host))
        });
        for (key, host) in plain.chain(mirrors) {
            let is_one = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
            if host.is_empty() || !host.chars().all(is_one) {
                return Err(format!("{key}: {host:?} is not HOST or HOST:PORT"));
            }
        }
        Ok(())
    }
}
