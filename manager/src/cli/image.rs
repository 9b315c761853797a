// SPDX-License-Identifier: Apache-2.0
//! `image`: what is asked of the program that has them, `dunnage-image`.

use super::run::NOT_RUN;
use crate::config::Config;
use crate::launch;
use clap::Subcommand;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "dunnage-image";

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Load images: what `docker save` writes, an OCI archive or an OCI layout's directory
    Load {
        /// The file or directory, or - for stdin
        file: PathBuf,
        /// What the image is called, in place of what the file says
        #[arg(long)]
        name: Option<String>,
    },
    /// Get an image from a registry
    Pull {
        /// Its name, such as alpine or registry.example.com:5000/a/b:tag
        name: String,
        /// Without TLS
        #[arg(long)]
        plain_http: bool,
    },
    /// List images
    Ls {
        /// Only their ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove names, and images that have none then
    Rm {
        /// Names, or the beginnings of ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images without a name that no container uses, and what failed programs left
    Prune {
        /// All that no container uses
        #[arg(long)]
        all: bool,
    },
}

/// The program, for this configuration's images.
///
/// # Errors
/// A text, if it is not there.
pub fn program(config: &Config) -> Result<Command, String> {
    let mut command = Command::new(find(&config.image.program)?);
    command.arg("--root").arg(&config.root);
    Ok(command)
}

fn find(configured: &Path) -> Result<PathBuf, String> {
    if !configured.as_os_str().is_empty() {
        return match configured.is_file() {
            true => Ok(configured.to_owned()),
            false => Err(format!("image.program: {configured:?} is not there")),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = launch::program().parent().map(Path::to_owned);
    let dirs = beside.into_iter().chain(std::env::split_paths(&path));
    let found = dirs.map(|dir| dir.join(PROGRAM)).find(|it| it.is_file());
    found.ok_or_else(|| format!("{PROGRAM} is neither beside dunnage nor in PATH"))
}

/// What a pull is told of registries: `plain` if that of `name` has no TLS.
pub fn pull(config: &Config, name: &str, plain: bool) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["pull".into()];
    let plain = plain.then(|| registry(name).to_owned());
    for host in config.image.plain_http.iter().chain(&plain) {
        words.extend(["--plain-http".into(), host.into()]);
    }
    for (registry, hosts) in &config.image.mirrors {
        for host in hosts {
            words.extend(["--mirror".into(), format!("{registry}={host}").into()]);
        }
    }
    words.extend(["--".into(), name.into()]);
    words
}

/// The registry that a name begins with, if it does so.
fn registry(name: &str) -> &str {
    let first = name.split_once('/').map_or("", |(first, _)| first);
    match first.contains(['.', ':']) || first == "localhost" {
        true => first,
        false => "docker.io",
    }
}

/// Becomes the program. It does not return, unless it fails.
pub fn become_program(config: &Config, asked: &Image, as_json: bool) -> u8 {
    let mut command = match program(config) {
        Ok(command) => command,
        Err(e) => {
            super::complain(&e);
            return NOT_RUN;
        }
    };
    if as_json {
        command.arg("--json");
    }
    match asked {
        Image::Load { file, name } => {
            command.arg("load");
            if let Some(name) = name {
                command.args(["--name", name]);
            }
            command.arg("--").arg(file);
        }
        Image::Pull { name, plain_http } => {
            command.args(pull(config, name, *plain_http));
        }
        Image::Ls { quiet } => {
            command.arg("ls").args(quiet.then_some("--quiet"));
        }
        Image::Rm { images } => {
            command.args(["rm", "--"]).args(images);
        }
        Image::Prune { all } => {
            command.arg("prune").args(all.then_some("--all"));
        }
    }
    let failed = command.exec();
    super::complain(&format!("{:?}: {failed}", command.get_program()));
    NOT_RUN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_what_docker_takes_for_one() {
        for (name, of) in [
            ("alpine", "docker.io"),
            ("user/app", "docker.io"),
            ("localhost/app", "localhost"),
            ("a.b/c/d:e", "a.b"),
            ("host:5000/x", "host:5000"),
        ] {
            assert_eq!(registry(name), of);
        }
    }
}
