// SPDX-License-Identifier: Apache-2.0
//! Bad names, labels and filters, and clients without permission.

use harness::containerd::release::Release;
use harness::manager;
use harness::peers;
use std::os::unix::fs::PermissionsExt;

#[test]
fn bad_names_are_refused_by_name() {
    let Some(ctr) = Release::find("1.6") else {
        return;
    };
    manager::on(|manager| {
        let rootfs = peers::rootfs().display().to_string();
        for id in ["a b", "a/b", "..", "-", "a..b"] {
            let create = ["containers", "create", "--rootfs", &rootfs, "--", id];
            let output = manager.ctr(&ctr, &create);
            output.fails_with("");
        }
        for id in ["a b", "a/../b", "a..b"] {
            manager.dunnage(&["inspect", id]).fails_with(id);
        }
        let socket = manager.socket().display().to_string();
        manager
            .plain(&["-a", &socket, "-n", "a/b", "ls"])
            .fails_with("a/b");
        manager
            .dunnage(&["ls", "--filter", "id=x"])
            .fails_with("id=x");
        manager
            .dunnage(&["events", "--filter", "topic~=("])
            .fails_with("topic~=(");
        let label = format!("k={}", "v".repeat(5000));
        let create = ["create", "--rootfs", &rootfs, "-l", &label, "c", "true"];
        manager.dunnage(&create).fails_with("label");
        manager
            .dunnage(&["ns", "rm", "absent"])
            .fails_with("absent");
        assert!(manager.json(&["ls"]).is_empty());
    });
}

/// Codes and texts, which no client shows whole.
#[test]
fn bad_names_labels_and_filters_are_invalid_arguments_that_name_the_value() {
    use harness::manager::api::Api;
    use protos::services::containers::v1::*;
    use protos::services::events::v1::{PublishRequest, SubscribeRequest};
    use protos::services::namespaces::v1::*;
    use protos::services::tasks::v1::*;
    use tonic::{Code, Status};

    manager::on(|manager| {
        let mut api = Api::new(manager);
        let invalid = |answer: Result<(), Status>, value: &str| {
            let e = answer.expect_err(value);
            assert_eq!(e.code(), Code::InvalidArgument, "{value}: {e}");
            assert!(e.message().contains(value), "{value}: {e}");
        };
        let long = "x".repeat(77);
        for id in ["a b", "a/b", "..", "-", "a..b", "a.", "\u{e9}", &long] {
            let record = api.plain_container(id, &["true"]);
            invalid(api.create_container(record).map(drop), id);
            let get = GetContainerRequest { id: id.into() };
            let got = api.call::<GetContainerResponse>("containers.v1.Containers/Get", get);
            invalid(got.map(drop), id);
            let delete = DeleteContainerRequest { id: id.into() };
            invalid(api.call("containers.v1.Containers/Delete", delete), id);
            let create = CreateTaskRequest {
                container_id: id.into(),
                ..Default::default()
            };
            let made = api.call::<CreateTaskResponse>("tasks.v1.Tasks/Create", create);
            invalid(made.map(drop), id);
            let exec = ExecProcessRequest {
                container_id: "c".into(),
                exec_id: id.into(),
                ..Default::default()
            };
            invalid(api.call("tasks.v1.Tasks/Exec", exec), id);
            let create = CreateNamespaceRequest {
                namespace: Some(Namespace {
                    name: id.into(),
                    ..Default::default()
                }),
            };
            let made =
                api.call::<CreateNamespaceResponse>("namespaces.v1.Namespaces/Create", create);
            invalid(made.map(drop), id);
        }
        let mut record = api.plain_container("c", &["true"]);
        record.labels.insert("too-long".into(), "v".repeat(4096));
        invalid(api.create_container(record).map(drop), "too-long");
        let mut record = api.plain_container("c", &["true"]);
        record.spec = None;
        invalid(api.create_container(record).map(drop), "Spec");
        let mut record = api.plain_container("c", &["true"]);
        record.runtime = None;
        invalid(api.create_container(record).map(drop), "Runtime");
        for filter in [
            "id=x",
            "==x",
            "id==",
            "id~=(",
            "id,",
            "labels.\"a",
            "id ==x",
        ] {
            let list = ListContainersRequest {
                filters: vec!["id==fine".into(), filter.into()],
            };
            let listed = api.call::<ListContainersResponse>("containers.v1.Containers/List", list);
            invalid(listed.map(drop), filter.replace('"', "\\\"").as_str());
            let subscribe = SubscribeRequest {
                filters: vec![filter.into()],
            };
            let subscribed = api.call::<()>("events.v1.Events/Subscribe", subscribe);
            invalid(subscribed, filter.replace('"', "\\\"").as_str());
        }
        for topic in ["", "/", "tasks/exit", "/tasks//exit", "/a b"] {
            let publish = PublishRequest {
                topic: topic.into(),
                event: None,
            };
            invalid(api.call("events.v1.Events/Publish", publish), topic);
        }
        let delete = DeleteProcessRequest {
            container_id: "c".into(),
            exec_id: String::new(),
        };
        let deleted = api.call::<DeleteResponse>("tasks.v1.Tasks/DeleteProcess", delete);
        invalid(deleted.map(drop), "exec id");
        // containerd 2.4 would ask that address for the task, and start no shim.
        api.create_container(api.plain_container("c", &["true"]))
            .expect("a record");
        let create = CreateTaskRequest {
            container_id: "c".into(),
            task_api_address: "ttrpc+unix:///agent.sock".into(),
            ..Default::default()
        };
        let made = api.call::<CreateTaskResponse>("tasks.v1.Tasks/Create", create);
        let e = made.expect_err("a task of somebody else's");
        assert_eq!(e.code(), Code::Unimplemented, "{e}");
        assert!(e.message().contains("task_api_address"), "{e}");
        let list = ListContainersRequest::default;
        let listed =
            |api: &Api| api.call::<ListContainersResponse>("containers.v1.Containers/List", list());
        for namespace in ["a/b", "a b", "..", &long] {
            api.namespace = namespace.into();
            invalid(listed(&api).map(drop), namespace);
        }
        // As containerd's: who names none has made no mistake in a name.
        api.namespace.clear();
        let e = listed(&api).expect_err("no namespace");
        assert_eq!(e.code(), Code::FailedPrecondition);
        let e = api
            .call::<()>("images.v1.Images/List", list())
            .expect_err("no images");
        assert_eq!(e.code(), Code::Unimplemented);
        assert!(e.message().contains("has no images"), "{e}");
    });
}

#[test]
fn the_socket_is_open_to_the_group_that_the_configuration_names() {
    const GROUP: u32 = 65531;
    let config = format!("[grpc]\ngid = {GROUP}\nmode = \"0620\"\n");
    manager::with(&config, |manager| {
        let metadata = std::fs::metadata(manager.socket()).expect("the socket");
        use std::os::unix::fs::MetadataExt;
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o620, GROUP));
        let ls = |group: u32| {
            let mut command = std::process::Command::new("setpriv");
            command.args(["--reuid=65534", "--clear-groups"]);
            command
                .arg(format!("--regid={group}"))
                .arg(manager::binary());
            command.arg("-a").arg(manager.socket()).arg("ls");
            command.output().expect("setpriv").status.success()
        };
        assert!(ls(GROUP));
        assert!(!ls(65534));
    });
}

#[test]
fn the_socket_is_for_its_owner_and_group() {
    manager::on(|manager| {
        let mode = |path: &std::path::Path| {
            std::fs::metadata(path)
                .expect("the socket")
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode(&manager.socket()), 0o660);
        assert_eq!(mode(&manager.state().join("dunnage.sock.ttrpc")), 0o600);
        let socket = manager.socket();
        let output = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(manager::binary())
            .arg("-a")
            .arg(&socket)
            .arg("ls")
            .output()
            .expect("setpriv");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains("ermission denied"),
            "{text}"
        );
    });
}
