// SPDX-License-Identifier: Apache-2.0
//! `image pull`, and images that `run` gets: from Debian's registry. And what Docker itself saved.

use super::{kept, place};
use harness::docker::{Bridge, Dockerd, Programs};
use harness::image::{Image, Layer};
use harness::manager::{self, Manager};
use harness::registry::{Registry, USER};
use serde_json::json;
use std::fs;

/// A registry with an image of busybox under some names.
fn registry(manager: &Manager, closed: bool, names: &[&str]) -> Registry {
    let name = if closed { "closed" } else { "open" };
    let registry = Registry::start(&place(manager, name), closed);
    let layers = [Layer::of_rootfs(), Layer::default().file("of", name)];
    let image = Image::new(&layers, json!({"Cmd": ["cat", "/of"]}));
    let layout = place(manager, &format!("{name}-layout"));
    image.layout(&layout, "any");
    for name in names {
        registry.push(&layout, name, "latest");
    }
    registry
}

#[test]
fn an_image_comes_out_of_a_registry_by_tag_by_digest_and_by_run() {
    manager::on(|manager| {
        let registry = registry(manager, false, &["a/box", "other"]);
        let name = format!("{}/a/box", registry.host());
        let pulled = manager.dunnage(&["image", "pull", &name]).ok();
        pulled.prints(&format!("{name}:latest\n"));
        manager
            .dunnage(&["run", "--rm", "--pull", "never", &name])
            .ok()
            .prints("open");
        let digest = manager.json(&["image", "ls"])[0]["digest"]
            .as_str()
            .expect("a digest")
            .to_owned();
        manager.dunnage(&["image", "rm", &name]).ok();
        assert!(kept(manager).is_empty(), "{:?}", kept(manager));
        let exact = format!("{name}@{digest}");
        manager
            .dunnage(&["run", "--rm", &exact])
            .ok()
            .prints("open");
        manager
            .dunnage(&["run", "--rm", "--pull", "never", &exact])
            .ok()
            .prints("open");
        let other = format!("{}/other", registry.host());
        manager
            .dunnage(&["run", "--rm", "--pull", "always", &other])
            .ok()
            .prints("open");
        for missing in [
            "nobody",
            "other:1",
            &format!("other@sha256:{}", "0".repeat(64)),
        ] {
            let missing = format!("{}/{missing}", registry.host());
            let refused = manager.dunnage(&["image", "pull", &missing]).exits(125);
            assert!(
                refused.stderr.contains(&missing) && refused.stderr.lines().count() == 1,
                "{refused}"
            );
            manager.dunnage(&["run", &missing]).exits(125);
        }
        assert!(manager.json(&["ls"]).is_empty());
    });
}

/// In the registry's own files: what comes is not what it is called, and nothing of it stays.
#[test]
fn a_registry_that_lies_is_not_believed() {
    manager::on(|manager| {
        let registry = registry(manager, false, &["box"]);
        let name = format!("{}/box", registry.host());
        let blobs = place(manager, "open").join("data/docker/registry/v2/blobs/sha256");
        let of_length = |most: bool| {
            let all = fs::read_dir(&blobs)
                .expect("blobs")
                .flat_map(|dir| fs::read_dir(dir.expect("a directory").path()).expect("blobs"));
            let mut all: Vec<_> = all
                .map(|it| it.expect("a blob").path().join("data"))
                .collect();
            all.sort_by_key(|path| fs::metadata(path).expect("a blob").len());
            if most {
                all.pop()
            } else {
                all.into_iter().next()
            }
            .expect("a blob")
        };
        for path in [of_length(true), of_length(false)] {
            let good = fs::read(&path).expect("a blob");
            let mut bad = good.clone();
            let middle = bad.len() / 2;
            bad[middle] ^= 0x10;
            fs::write(&path, &bad).expect("a blob");
            let refused = manager.dunnage(&["image", "pull", &name]).exits(125);
            assert!(refused.stderr.contains(&name), "{refused}");
            assert!(kept(manager).is_empty(), "{:?}", kept(manager));
            fs::write(&path, &good).expect("a blob");
        }
        manager.dunnage(&["image", "pull", &name]).ok();
    });
}

#[test]
fn credentials_are_those_of_dockers_file() {
    manager::on(|manager| {
        let registry = registry(manager, true, &["box"]);
        let name = format!("{}/box", registry.host());
        let refused = manager.dunnage(&["image", "pull", &name]).exits(125);
        assert!(refused.stderr.contains(&name), "{refused}");
        let dir = place(manager, "docker");
        fs::create_dir(&dir).expect("a directory");
        let pull = |json: &str| {
            fs::write(dir.join("config.json"), json).expect("config.json");
            let mut command = manager.client(&["image", "pull", &name]);
            command.env("DOCKER_CONFIG", &dir);
            harness::containerd::ctr::Ctr::spawn(command, std::process::Stdio::null()).finish()
        };
        let auth = |text: &str| json!({"auths": {registry.host(): {"auth": text}}}).to_string();
        // user:wrong
        pull(&auth("dXNlcjp3cm9uZw==")).exits(125);
        let damaged = pull("{").exits(125);
        assert!(damaged.stderr.contains("config.json"), "{damaged}");
        assert_eq!(USER, ("user", "secret"));
        pull(&auth("dXNlcjpzZWNyZXQ=")).ok();
    });
}

/// `alpine` is Docker Hub's `library/alpine`: asked of its mirrors first.
#[test]
fn short_names_are_docker_hubs_and_mirrors_are_asked_in_order() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let dead = format!(
        "127.0.0.1:{}",
        port.local_addr().expect("an address").port()
    );
    drop(port);
    // The configuration is the client's own.
    manager::on(|manager| {
        let registry = registry(manager, false, &["library/alpine"]);
        let config = manager.dir().join("config.toml");
        let mut text = fs::read_to_string(&config).expect("config.toml");
        text += &format!(
            "[image.mirrors]\n\"docker.io\" = [\"{dead}\", \"{}\"]\n",
            registry.host()
        );
        fs::write(&config, text).expect("config.toml");
        manager
            .dunnage(&["image", "pull", "alpine"])
            .ok()
            .prints("docker.io/library/alpine:latest\n");
        manager
            .dunnage(&["run", "--rm", "docker.io/library/alpine"])
            .ok()
            .prints("open");
    });
}

/// Plain HTTP is for this machine, and where somebody said so.
#[test]
fn plain_http_only_where_it_is_said() {
    manager::on(|manager| {
        let registry = registry(manager, false, &["box"]);
        let port = registry
            .host()
            .split_once(':')
            .expect("a port")
            .1
            .to_owned();
        // Another name of this machine, which does not look like one.
        let hosts = fs::read_to_string("/etc/hostname").expect("a name");
        let name = format!("{}.invalid:{port}/box", hosts.trim().to_lowercase());
        let refused = manager.dunnage(&["image", "pull", &name]).exits(125);
        assert!(refused.stderr.contains("https://"), "{refused}");
        let refused = manager
            .dunnage(&["image", "pull", "--plain-http", &name])
            .exits(125);
        assert!(refused.stderr.contains("http://"), "{refused}");
        let config = manager.dir().join("config.toml");
        let mut text = fs::read_to_string(&config).expect("config.toml");
        text += &format!(
            "[image]\nplain_http = [\"{}\"]\n",
            name.split_once('/').expect("a host").0
        );
        fs::write(&config, text).expect("config.toml");
        let refused = manager.dunnage(&["image", "pull", &name]).exits(125);
        assert!(refused.stderr.contains("http://"), "{refused}");
    });
}

/// What both Dockers save of an image that they made.
#[test]
fn an_image_that_docker_saved_runs() {
    for programs in [Programs::of_the_system(), Programs::newest()]
        .into_iter()
        .flatten()
    {
        manager::on(|manager| {
            let dockerd = Dockerd::start(&programs, manager, Bridge::None);
            let built = dockerd
                .docker(&["create", "--network=none", "busybox:test", "true"])
                .ok();
            let change = [
                "commit",
                "-c",
                "ENTRYPOINT [\"echo\", \"of docker\"]",
                "-c",
                "USER nobody",
            ];
            dockerd
                .docker(&[&change[..], &[built.stdout.trim(), "made:1"]].concat())
                .ok();
            let file = place(manager, "saved.tar").display().to_string();
            dockerd.docker(&["save", "-o", &file, "made:1"]).ok();
            dockerd.docker(&["rm", built.stdout.trim()]).ok();
            drop(dockerd);
            let loaded = manager.dunnage(&["image", "load", &file]).ok();
            loaded.prints("docker.io/library/made:1\n");
            manager
                .dunnage(&["run", "--rm", "made:1", "it is"])
                .ok()
                .prints("of docker it is\n");
        });
    }
}
