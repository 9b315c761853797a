// SPDX-License-Identifier: Apache-2.0
//! Containers of one group share a shim, under the daemon too.

use harness::containerd::release::Release;
use harness::manager::api::Api;
use harness::manager::{self, Manager};
use harness::{proc, wait};
use protos::services::tasks::v1::*;

/// Runs `words` as a container of the group `g`; the pid of its init.
fn run(api: &Api, id: &str, words: &[&str]) -> i32 {
    let mut container = api.plain_container(id, words);
    let spec = container.spec.as_mut().expect("a spec");
    let mut json: serde_json::Value = serde_json::from_slice(&spec.value).expect("JSON");
    json["annotations"] = serde_json::json!({"io.containerd.runc.v2.group": "g"});
    spec.value = json.to_string().into_bytes();
    api.create_container(container).expect("a container");
    let create = CreateTaskRequest {
        container_id: id.into(),
        ..Default::default()
    };
    let created: CreateTaskResponse = api.call("tasks.v1.Tasks/Create", create).expect("Create");
    let start = StartRequest {
        container_id: id.into(),
        ..Default::default()
    };
    let _: StartResponse = api.call("tasks.v1.Tasks/Start", start).expect("Start");
    created.pid as i32
}

fn shim_of(pid: i32) -> i32 {
    proc::stat(pid).expect("it runs").ppid
}

fn shared_by_two(manager: &mut Manager) {
    let api = Api::new(manager);
    let (one, two) = (
        run(&api, "one", &["sleep", "1000"]),
        run(&api, "two", &["sleep", "1000"]),
    );
    let shim = shim_of(one);
    assert_eq!(shim, shim_of(two), "one shim");
    assert_eq!(manager.shims(), [shim]);
    manager.dunnage(&["delete", "--force", "one"]).ok();
    assert_eq!(manager.status("two"), "running");
    // The shim stays while it has another, and that is no reason to wait for its end.
    assert!(proc::alive(shim));
    assert!(!manager.log().contains("did not end"), "{}", manager.log());
    let three = run(&api, "three", &["sleep", "1000"]);
    assert_eq!(shim_of(three), shim);
    manager.kill();
    manager.restart();
    assert_eq!(manager.status("two"), "running");
    assert_eq!(manager.status("three"), "running");
    manager.dunnage(&["exec", "two", "true"]).ok();
    manager.dunnage(&["delete", "--force", "two"]).ok();
    manager.dunnage(&["exec", "three", "true"]).ok();
    manager.dunnage(&["delete", "--force", "three"]).ok();
    manager.until("the shim gone", |_| (!proc::alive(shim)).then_some(()));
}

#[test]
fn a_group_shares_one_shim_until_its_last_container_is_deleted() {
    manager::on(shared_by_two);
}

#[test]
fn a_group_of_gos_shim_does_too() {
    match Release::find("1.6") {
        Some(release) => manager::under(&release.go_shim(), shared_by_two),
        None => harness::containerd::report("shim 1.6 is MISSING (run tests/setup.sh)"),
    }
}

#[test]
fn the_death_of_a_groups_shim_is_told_of_each_container() {
    manager::on(|manager| {
        let api = Api::new(manager);
        let one = run(&api, "one", &["sleep", "1000"]);
        run(&api, "two", &["sleep", "1000"]);
        wait::signal(shim_of(one), libc::SIGKILL).expect("kill");
        for id in ["one", "two"] {
            manager.until("its exit", |it| (!it.exits(id).is_empty()).then_some(()));
            assert_eq!(manager.exits(id), [(137, "reaped".to_owned())], "{id}");
            manager.until("it buried", |it| (it.status(id) == "-").then_some(()));
        }
    });
}
