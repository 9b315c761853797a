// SPDX-License-Identifier: Apache-2.0
//! The `start` command: flags, exit codes, the dialects of stdin and stdout, grouping, sockets.

use harness::start::{Answer, environment};
use harness::{Dialect, Shim, Stdin, differs, peers, proc, vm_differs, wait};
use protos::runc::Options;
use protos::task::ConnectResponse;
use protos::{Message, bootstrap::BootstrapParams};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// B2: an unknown flag is told with the usage on stderr, and exit code 2.
#[test]
fn unknown_flag_shows_usage_and_exits_2() {
    harness::run(async |test| {
        let start = test.bundle("c").build().start();
        let args = words(&["-namespace", test.namespace(), "-no-such-flag", "start"]);
        let output = wait::output(start.command(&args), None).await;
        assert_eq!((output.code(), output.out().as_str()), (Some(2), ""));
        let text = output.err();
        assert!(
            text.contains("flag provided but not defined: -no-such-flag"),
            "{text}"
        );
        for flag in [
            "-namespace",
            "-id",
            "-address",
            "-publish-binary",
            "-bundle",
            "-socket",
            "-debug",
            "-v",
        ] {
            assert!(
                text.contains(&format!("  {flag}")),
                "{flag} is not in the usage: {text}"
            );
        }
    });
}

/// B2: Go's ways to write a flag.
#[test]
fn flags_take_one_dash_or_two_and_an_equals_sign() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let (ns, grpc) = (test.namespace(), test.grpc_address());
        let args = [
            format!("--namespace={ns}"),
            "--address".into(),
            grpc,
            "-id=c".into(),
            "-debug=true".into(),
            "-publish-binary".into(),
            String::new(),
            "start".into(),
        ];
        let output = wait::output(bundle.start().command(&args), None).await;
        assert_eq!((output.code(), output.err().as_str()), (Some(0), ""));
        let answer = Answer::parse(&output.stdout);
        assert_eq!(answer.socket(), test.socket_of("c"));
        Shim::connect(&bundle, answer).await;
    });
}

/// B5: no namespace, no service; B4: what an error looks like.
#[test]
fn start_without_a_namespace_exits_1() {
    harness::run(async |test| {
        let start = test.bundle("c").build().start();
        let output = wait::output(start.command(&words(&["-id", "c", "start"])), None).await;
        assert_eq!((output.code(), output.out().as_str()), (Some(1), ""));
        assert_eq!(
            output.err(),
            format!("{}: shim namespace cannot be empty", peers::shim_type())
        );
    });
}

/// B23: `-v` needs no namespace, and nothing else.
#[test]
fn version_is_printed() {
    let output = Command::new(peers::shim()).arg("-v").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let name = peers::shim().file_name().unwrap().to_string_lossy();
    assert!(lines[0].ends_with(&format!("{name}:")), "{text}");
    assert!(
        lines[1].starts_with("  Version:") && lines[2].starts_with("  Revision:"),
        "{text}"
    );
    assert_eq!(output.stderr, b"");
}

/// B9, B20, B22, B35: callers that send no BootstrapParams get the plain address, and find it in
/// the file `address` when they come back (0.7).
#[test]
fn legacy_callers_get_a_plain_address_and_an_address_file() {
    harness::run(async |test| {
        let options = Options {
            binary_name: "runc".into(),
            ..Default::default()
        };
        let stdins = [
            Stdin::Null,
            Stdin::Empty,
            Stdin::Options(Options::default()),
            Stdin::Options(options),
        ];
        for (n, stdin) in stdins.into_iter().enumerate() {
            let bundle = test.bundle(&format!("c{n}")).build();
            let shim = bundle.start().stdin(stdin).shim().await;
            assert_eq!(shim.answer().dialect, Dialect::Plain);
            let address = test.address_of(&bundle.id);
            assert_eq!(shim.answer().address, address);
            assert_eq!(fs::read_to_string(bundle.file("address")).unwrap(), address);
            let mode = fs::metadata(bundle.file("address"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777;
            assert_eq!(mode, 0o644, "mode of `address`");
        }
    });
}

/// B9, B11, B12, B20: callers that send BootstrapParams get a BootstrapResult of version 3.
#[test]
fn bootstrap_callers_get_protobuf_version_3() {
    harness::run(async |test| {
        let options = Options {
            binary_name: "runc".into(),
            ..Default::default()
        };
        for (n, stdin) in [Stdin::Bootstrap, Stdin::BootstrapOptions(options)]
            .into_iter()
            .enumerate()
        {
            let bundle = test.bundle(&format!("c{n}")).build();
            let start = bundle.start().stdin(stdin).debug();
            if differs("bootstrap-params") {
                let output = start.run().await;
                assert_eq!(
                    Answer::parse(&output.stdout).dialect,
                    Dialect::Plain,
                    "{output:?}"
                );
                continue;
            }
            let shim = start.shim().await;
            let answer = shim.answer();
            assert_eq!(answer.dialect, Dialect::Protobuf);
            assert_eq!((answer.version, answer.protocol.as_str()), (3, "ttrpc"));
            assert_eq!(answer.address, test.address_of(&bundle.id));
            // `address` is written for every caller: a way back to containerd 1.7 stays open.
            assert_eq!(
                bundle.files(),
                ["address", "config.json", "log", "rootfs", "work"]
            );
            let connected: ConnectResponse = shim.v3().connect_call("").await.unwrap();
            assert_eq!(connected.shim_pid as i32, shim.pid());
        }
    });
}

/// B12: bytes that parse as BootstrapParams but name another container are a legacy caller's;
/// an Any does (0.2: containerd up to 2.2 with runtime options).
#[test]
fn params_of_another_container_make_a_legacy_caller() {
    harness::run(async |test| {
        if differs("bootstrap-params") {
            return;
        }
        let right = test.bundle("c0").build().start().bootstrap_params();
        let others = [
            BootstrapParams {
                instance_id: "other".into(),
                ..right.clone()
            },
            BootstrapParams {
                namespace: "other".into(),
                ..right.clone()
            },
        ];
        for (n, params) in others.into_iter().enumerate() {
            let bundle = test.bundle(&format!("c{}", n + 1)).build();
            let stdin = Stdin::Raw(params.encode_to_vec());
            let shim = bundle.start().stdin(stdin).shim().await;
            assert_eq!(shim.answer().dialect, Dialect::Plain);
            assert_eq!(shim.socket(), test.socket_of(&bundle.id));
        }
    });
}

/// B30: without config.json there is no container to start a shim for, and in a shim for runc no sandbox
/// either (S2).
#[test]
fn start_without_a_readable_config_exits_1() {
    harness::run(async |test| {
        for (id, config) in [("missing", None), ("invalid", Some("{\"annotations\": [}"))] {
            if config.is_none() && vm_differs("sandboxes") {
                continue;
            }
            let bundle = test.bundle(id).build();
            fs::remove_file(bundle.file("config.json")).unwrap();
            if let Some(text) = config {
                fs::write(bundle.file("config.json"), text).unwrap();
            }
            let output = bundle.start().run().await;
            assert_eq!(
                (output.code(), output.out().as_str()),
                (Some(1), ""),
                "{id}"
            );
            assert!(
                output.err().starts_with(peers::shim_type()),
                "{}",
                output.err()
            );
            assert!(!test.socket_of(id).exists());
            assert_eq!(test.daemons(), [] as [i32; 0]);
        }
    });
}

/// B8, B36: the daemon as `start` leaves it.
#[test]
fn daemon_runs_in_the_bundle_in_its_own_process_group() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let shim = bundle.start().shim().await;
        let pid = shim.pid();
        let stat = proc::stat(pid).unwrap();
        assert_eq!(stat.pgrp, pid, "a process group of its own");
        let own = proc::stat(std::process::id() as i32).unwrap();
        assert_eq!(stat.session, own.session, "but no session");
        assert_eq!(proc::cwd(pid).unwrap(), bundle.path);
        let args = proc::words(pid, "cmdline");
        let expected = [
            "-namespace",
            test.namespace(),
            "-id",
            "c",
            "-address",
            &test.grpc_address(),
        ];
        assert_eq!(args[1..], expected);
        let env = proc::words(pid, "environ");
        let has = |word: &str| env.iter().any(|w| w == word);
        assert!(
            has(&format!("TTRPC_ADDRESS={}", test.ttrpc_address())),
            "{env:?}"
        );
        assert!(has("GOMAXPROCS=4"), "{env:?}");
        let fds = proc::fds(pid).unwrap();
        assert_eq!(
            (fds[&0].as_str(), fds[&1].as_str()),
            ("/dev/null", "/dev/null")
        );
        assert_eq!(
            fds[&2],
            bundle.file("log").to_string_lossy(),
            "B52: the log is stderr"
        );
        assert!(fds[&3].starts_with("socket:"), "{fds:?}");
    });
}

/// B36, B57: `-debug` reaches the daemon.
#[test]
fn debug_flag_is_passed_on() {
    harness::run(async |test| {
        let shim = test.bundle("c").build().start().debug().shim().await;
        let args = proc::words(shim.pid(), "cmdline");
        assert!(args.contains(&"-debug".to_owned()), "{args:?}");
    });
}

/// B7: the shim takes its environment from the command's.
#[test]
fn start_needs_only_the_variables_containerd_1_6_sets() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let mut start = bundle.start();
        for name in ["GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION"] {
            start = start.without_env(name);
        }
        let shim = start.shim().await;
        shim.create(bundle.create()).await.unwrap();
        test.events()
            .wait_for("TaskCreate", |e| (e.container() == "c").then_some(()))
            .await;
    });
}

/// B24: `-info` tells name, version, the given options and the runtime's features.
#[test]
fn info_tells_the_runtime_and_its_features() {
    harness::run(async |test| {
        let options = protos::any::pack(&Options {
            binary_name: "runc".into(),
            ..Default::default()
        });
        let info = async |input: &[u8]| {
            let mut command = Command::new(peers::shim());
            command.arg("-info").current_dir(test.dir());
            environment(&mut command, test, test.namespace());
            wait::output(command, Some(input)).await
        };
        if differs("info") {
            assert_eq!(info(b"").await.code(), Some(2));
            return;
        }
        for (input, echoed) in [
            (Vec::new(), None),
            (options.encode_to_vec(), Some(options.clone())),
        ] {
            let output = info(&input).await;
            assert_eq!((output.code(), output.err().as_str()), (Some(0), ""));
            let info = protos::types::RuntimeInfo::decode(output.stdout.as_slice()).unwrap();
            assert_eq!(info.name, peers::shim_type());
            assert!(info.version.is_some_and(|v| !v.version.is_empty()));
            assert_eq!(info.options, echoed);
            let features = info.features.expect("features");
            let url = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
            assert_eq!(features.type_url, url);
            let json: serde_json::Value = serde_json::from_slice(&features.value).unwrap();
            assert!(json["hooks"].is_array(), "{json}");
            if vm_differs("guests-runtime") {
                let options = json["mountOptions"].as_array().expect("options of mounts");
                assert!(options.iter().any(|option| option == "rro"), "{json}");
                assert_eq!(json["linux"]["mountExtensions"]["idmap"]["enabled"], true);
            }
        }
        if vm_differs("guests-runtime") {
            return;
        }
        let missing = Options {
            binary_name: "no-such-runc".into(),
            ..Default::default()
        };
        let output = info(&protos::any::pack(&missing).encode_to_vec()).await;
        assert_eq!(output.code(), Some(1));
        assert!(
            output
                .err()
                .contains("failed to look up the path of \"no-such-runc\""),
            "{output:?}"
        );
    });
}

/// B31: a namespace as long as containerd allows; the socket's path is as short as ever.
#[test]
fn long_namespace_does_not_lengthen_the_socket() {
    harness::run(async |test| {
        let bundle = test.bundle("c").build();
        let mut start = bundle.start();
        start.namespace = format!(
            "{}{}",
            test.namespace(),
            "n".repeat(76 - test.namespace().len())
        );
        let shim = start.shim().await;
        assert_eq!(
            shim.socket().to_string_lossy().len(),
            "/run/containerd/s/".len() + 64
        );
        shim.stopped().await;
        assert!(!shim.socket().exists());
    });
}
