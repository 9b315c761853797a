// SPDX-License-Identifier: Apache-2.0
//! Sockets that containers make, and the host connects to: those that the configuration names, and no others.

use crate::adopt;
use crate::debug::configuration;
use crate::sockets::{PERL, container, start};
use harness::bundle::Bundle;
use harness::stdio::{Fifos, Reader, Stdio};
use harness::upgrade::{copy_of_the_binary, upgrade};
use harness::{Shim, Test, refused};
use protos::task::ExecProcessRequest;
use serde_json::json;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Listens there anew, and to each who connects says who that is and then what it heard. It says "ready"
/// when somebody may connect.
const SERVER: &str = r#"
    $| = 1; umask 0; $SIG{CHLD} = "IGNORE";
    for $path (@ARGV) {
        unlink $path; socket(S, 1, 1, 0) or die "socket: $!";
        bind(S, pack("Sa108", 1, $path)) or die "bind: $!"; listen(S, 64) or die "listen: $!";
        push @all, *S{IO}; undef *S;
    }
    print "ready\n";
    if (fork) { $S = shift @all } else { $S = pop @all }
    while (accept(C, $S)) {
        if (!fork) {
            ($pid, $uid) = unpack("iI", getsockopt(C, 1, 17));
            syswrite(C, "uid $uid: ");
            while (sysread(C, $some, 65536)) { syswrite(C, $some) }
            exit;
        }
        close(C);
    }"#;

/// Ends when it is killed.
fn server(bundle: &Bundle, exec: &str, user: u32, paths: &[&str]) -> ExecProcessRequest {
    let words: Vec<&str> = PERL
        .iter()
        .chain(&["-e", SERVER])
        .chain(paths)
        .copied()
        .collect();
    let mut process = harness::bundle::process(&bundle.test, &words);
    process["user"] = json!({"uid": user, "gid": user});
    bundle.exec_spec(exec, &process)
}

async fn serve(shim: &Shim, bundle: &Bundle, request: ExecProcessRequest) -> Reader {
    let name = format!("io-{}-{}", bundle.id, request.exec_id);
    let fifos = Fifos::new(bundle.test.dir().join(name));
    let (mut out, mut err) = fifos.readers();
    shim.run(request.output(&fifos)).await;
    tokio::select! {
        line = out.line() => assert_eq!(line, "ready"),
        line = err.line() => panic!("the server: {line}"),
    }
    out
}

/// Says something, and hears it again.
fn ask(path: &Path, what: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            stream.write_all(what).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all
    })
}

fn answers(path: &Path) {
    let answer = ask(path, b"word");
    assert_eq!(String::from_utf8_lossy(&answer), "uid 0: word", "{path:?}");
}

fn is_refused(path: &Path) {
    let kind = UnixStream::connect(path).map_err(|e| e.kind()).err();
    assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{path:?}");
}

fn volume(test: &Test) -> (PathBuf, PathBuf, PathBuf) {
    let dir = test.dir().join("volume");
    fs::create_dir_all(dir.join("in")).expect("a new directory");
    for at in [&dir, &dir.join("in")] {
        fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let (named, other) = (dir.join("in/named.sock"), dir.join("other.sock"));
    (dir, named, other)
}

/// V18: the host connects to the socket that is named, wherever in the volume it is, also to one that is made
/// anew, and to no other; it has the mode and the owner that its maker gives it, and containers connect to it
/// as well. It goes on under the shim's next image.
#[test]
fn the_host_connects_to_sockets_that_are_allowed() {
    crate::run(async |test| {
        let (dir, named, other) = volume(test);
        let config = configuration(test, &format!("container_sockets = [{named:?}]"));
        let bundle = container(test, "c", &[(&dir, "/home")]).build();
        let shim = start(&bundle, &config).await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        let paths = ["/home/in/named.sock", "/home/other.sock"];
        let _one = serve(&shim, &bundle, server(&bundle, "one", 1000, &paths)).await;
        answers(&named);
        is_refused(&other);
        let made = fs::metadata(&named).unwrap();
        assert_eq!(
            (made.uid(), made.gid(), made.mode() & 0o7777),
            (1000, 1000, 0o777)
        );
        // Others in the VM are in the guest's kernel.
        let client = crate::sockets::client(&bundle, "client", &paths);
        let told = crate::said(&shim, &bundle, client).await;
        let both = "/home/in/named.sock: uid 0: word\n/home/other.sock: uid 0: word\n";
        assert_eq!(told, both);
        let much: Vec<u8> = (0..3 << 20).map(|n| (n / 7) as u8).collect();
        assert!(ask(&named, &much) == [b"uid 0: ", &*much].concat());
        std::thread::scope(|scope| {
            (0..30).for_each(|_| drop(scope.spawn(|| answers(&named))));
        });

        let binary = copy_of_the_binary(test, "a");
        let output = upgrade(test, &binary).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        answers(&named);
        shim.kill("c", "one", 9, false).await.unwrap();
        shim.wait("c", "one").await.unwrap();
        let _two = serve(&shim, &bundle, server(&bundle, "two", 0, &paths[..1])).await;
        answers(&named);
        assert_eq!(fs::metadata(&named).unwrap().uid(), 0);

        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        is_refused(&named);
        assert_eq!(shim.stop().await, Vec::<String>::new());
    });
}

/// V18: the directory of one may be made later, and after others were named.
#[test]
fn a_socket_may_be_in_a_directory_that_is_made_later() {
    crate::run(async |test| {
        let (dir, named, _) = volume(test);
        let late = dir.join("late/named.sock");
        let config = configuration(test, &format!("container_sockets = [{late:?}, {named:?}]"));
        let bundle = container(test, "c", &[(&dir, "/home")]).build();
        let shim = start(&bundle, &config).await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        crate::said(
            &shim,
            &bundle,
            bundle.exec("make", &["mkdir", "/home/late"]),
        )
        .await;
        let paths = ["/home/late/named.sock", "/home/in/named.sock"];
        let _both = serve(&shim, &bundle, server(&bundle, "both", 0, &paths)).await;
        answers(&late);
        answers(&named);
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        assert_eq!(shim.stop().await, Vec::<String>::new());
    });
}

/// V14: and under the shim that comes after one that was killed.
#[test]
fn the_next_shim_goes_on_with_a_containers_socket() {
    crate::run(async |test| {
        let (dir, named, _) = volume(test);
        let config = configuration(test, &format!("container_sockets = [{named:?}]"));
        let bundle = container(test, "c", &[(&dir, "/home")]).build();
        let start = bundle.start().env("DUNNAGE_ON_SHIM_DEATH", "adopt");
        let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
        let shim = start.shim().await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        let paths = ["/home/in/named.sock"];
        let _one = serve(&shim, &bundle, server(&bundle, "one", 0, &paths)).await;
        answers(&named);
        let shim = adopt::kill(&bundle, &shim).await;
        answers(&named);
        let _two = serve(&shim, &bundle, server(&bundle, "two", 0, &paths)).await;
        answers(&named);
        let vm = shim.state("c", "").await.unwrap().pid;
        adopt::end(test, &bundle, &shim, vm).await;
    });
}

/// A guest that makes them without end gets no more of the shim than that is worth; who connects while nobody
/// listens in the guest, or more often than a VM may have connections, sees the end.
#[test]
fn a_guest_that_makes_many_sockets_stops_nothing() {
    crate::run(async |test| {
        let (dir, named, _) = volume(test);
        let config = configuration(test, &format!("container_sockets = [{named:?}]"));
        let bundle = container(test, "c", &[(&dir, "/home")]).build();
        let shim = start(&bundle, &config).await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        let many = r#"
            for (1..500) {
                unlink $ARGV[0]; socket(S, 1, 1, 0) or die "socket: $!";
                bind(S, pack("Sa108", 1, $ARGV[0])) or die "bind: $!";
            }
            print "done\n";"#;
        let words: Vec<&str> = PERL
            .iter()
            .copied()
            .chain(["-e", many, "/home/in/named.sock"])
            .collect();
        let told = crate::said(&shim, &bundle, bundle.exec("many", &words)).await;
        assert_eq!(told, "done\n");
        shim.state("c", "").await.unwrap();
        let paths = ["/home/in/named.sock"];
        let _one = serve(&shim, &bundle, server(&bundle, "one", 0, &paths)).await;
        // Those that were not heard of by then may be this one's.
        let fds = shim.new_fds();
        assert!(fds.len() < 64, "{fds:?}");
        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        assert_eq!(shim.stop().await, Vec::<String>::new());
    });
}

/// V7: what can't be made is refused by name, before anything boots.
#[test]
fn wrong_paths_are_refused_by_name() {
    crate::run(async |test| {
        let long = format!("/v/{}", "s".repeat(108));
        for (id, settings, why) in [
            (
                "a",
                r#"container_sockets = ["x.sock"]"#.to_owned(),
                "container_sockets: \"x.sock\" is not an absolute path",
            ),
            (
                "b",
                format!("container_sockets = [{long:?}]"),
                "ends with no name of 1 to 107 bytes",
            ),
            (
                "c",
                r#"container_sockets = ["/v/.."]"#.to_owned(),
                "\"/v/..\" ends with no name",
            ),
        ] {
            let config = configuration(test, &settings);
            let bundle = test.bundle(id).build();
            let shim = start(&bundle, &config).await;
            let status = refused(shim.create(bundle.create()).await);
            assert!(status.message.contains(why), "{status:?}");
            shim.stopped().await;
        }
        let config = configuration(test, "");
        let bundle = test
            .bundle("d")
            .annotation("io.dunnage.vm.container_sockets", "/v/s")
            .build();
        let shim = start(&bundle, &config).await;
        let status = refused(shim.create(bundle.create()).await);
        let why = "annotation io.dunnage.vm.container_sockets: not allowed by";
        assert!(status.message.contains(why), "{status:?}");
        shim.stopped().await;
    });
}
