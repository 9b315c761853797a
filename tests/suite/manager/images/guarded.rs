// SPDX-License-Identifier: Apache-2.0
//! Registries that want a token, a helper's password, or to be believed by their certificate.

use super::place;
use harness::containerd::ctr::{Ctr, Output};
use harness::image::{Image, Layer};
use harness::manager::{self, Manager};
use harness::registry::Registry;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The files of a registry that has an image of busybox, called `box`.
fn filled(manager: &Manager) -> PathBuf {
    let dir = place(manager, "registry");
    let registry = Registry::start(&dir, false);
    let layout = place(manager, "layout");
    Image::new(&[Layer::of_rootfs()], json!({"Cmd": ["true"]})).layout(&layout, "any");
    registry.push(&layout, "box", "latest");
    dir
}

fn pull(manager: &Manager, name: &str, variables: &[(&str, &Path)]) -> Output {
    let mut command = manager.client(&["image", "pull", name]);
    command.envs(variables.iter().copied());
    Ctr::spawn(command, Stdio::null()).finish()
}

/// Who has a password shows it to the server of tokens, and not to the registry.
#[test]
fn a_token_is_asked_for_where_the_registry_says() {
    manager::on(|manager| {
        let (registry, tokens) = Registry::with_tokens(&filled(manager), "box");
        let name = format!("{}/box", registry.host());
        pull(manager, &name, &[]).ok();
        let asked = tokens.asked();
        assert!(
            asked[0].contains("scope=repository%3Abox%3Apull")
                || asked[0].contains("repository:box:pull"),
            "{asked:?}"
        );
        assert!(
            !asked[0].to_lowercase().contains("authorization"),
            "{asked:?}"
        );
        // The token is for another repository.
        let other = format!("{}/other", registry.host());
        let refused = pull(manager, &other, &[]).exits(125);
        assert!(refused.stderr.contains(&other), "{refused}");
        let dir = place(manager, "docker");
        fs::create_dir(&dir).expect("a directory");
        let config = json!({"auths": {registry.host(): {"auth": "dXNlcjpzZWNyZXQ="}}});
        fs::write(dir.join("config.json"), config.to_string()).expect("config.json");
        manager.dunnage(&["image", "rm", &name]).ok();
        pull(manager, &name, &[("DOCKER_CONFIG", &dir)]).ok();
        let last = tokens.asked().pop().expect("a request");
        assert!(last.contains("Basic dXNlcjpzZWNyZXQ="), "{last}");
    });
}

#[test]
fn a_helper_of_dockers_knows_the_password() {
    manager::on(|manager| {
        let dir = filled(manager);
        let registry = Registry::start(&dir, true);
        let name = format!("{}/box", registry.host());
        let docker = place(manager, "docker");
        fs::create_dir(&docker).expect("a directory");
        let config = json!({"credHelpers": {registry.host(): "test"}});
        fs::write(docker.join("config.json"), config.to_string()).expect("config.json");
        let helper = docker.join("docker-credential-test");
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", docker.display());
        let variables = [
            ("DOCKER_CONFIG", docker.as_path()),
            ("PATH", Path::new(&path)),
        ];
        let missing = pull(manager, &name, &variables).exits(125);
        assert!(missing.stderr.contains("config.json"), "{missing}");
        let script = format!(
            "#!/bin/sh\nread -r server\n[ \"$1 $server\" = \"get {}\" ] || exit 1\n\
             echo '{{\"Username\": \"user\", \"Secret\": \"secret\"}}'\n",
            registry.host()
        );
        fs::write(&helper, script).expect("a helper");
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("its mode");
        pull(manager, &name, &variables).ok();
    });
}

/// A certificate that no authority of this machine has signed is refused, also for `localhost`, where
/// plain HTTP would do.
#[test]
fn a_certificate_must_be_of_a_known_authority() {
    manager::on(|manager| {
        let (registry, authority) = Registry::with_tls(&filled(manager));
        let name = format!("{}/box", registry.host());
        let refused = pull(manager, &name, &[]).exits(125);
        assert!(refused.stderr.contains(&name), "{refused}");
        pull(manager, &name, &[("SSL_CERT_FILE", &authority)]).ok();
    });
}
