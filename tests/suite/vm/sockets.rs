// SPDX-License-Identifier: Apache-2.0
//! Sockets of the host's that containers connect to: those that the configuration names, and no others.

use crate::debug::configuration;
use crate::said;
use harness::bundle::{Builder, Bundle};
use harness::upgrade::{copy_of_the_binary, upgrade};
use harness::{Shim, Test, refused};
use protos::task::ExecProcessRequest;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

/// The host's, where [`container`] has it.
pub const PERL: [&str; 4] = [
    "/mnt/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "--library-path",
    "/mnt/lib/x86_64-linux-gnu",
    "/mnt/bin/perl",
];

/// Says who has connected, and then all that it heard.
fn listen(path: &Path) {
    let listener = UnixListener::bind(path).expect("a new socket");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("it is there");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
}

fn answer(mut stream: UnixStream) -> std::io::Result<()> {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let peer = getsockopt(&stream, PeerCredentials)?;
    write!(stream, "uid {}: ", peer.uid())?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    stream.write_all(&all)
}

/// With the host's programs at /mnt, which the image of the tests has not.
pub fn container(test: &Test, id: &str, volumes: &[(&Path, &str)]) -> Builder {
    let mount = |source: &Path, destination: &str, mode: &str| {
        json!({"destination": destination, "type": "bind", "source": source,
               "options": ["rbind", mode]})
    };
    let bundle = test
        .bundle(id)
        .mount(mount(Path::new("/usr"), "/mnt", "ro"));
    volumes
        .iter()
        .fold(bundle, |bundle, (source, destination)| {
            bundle.mount(mount(source, destination, "rw"))
        })
}

/// Connects to the sockets, says a word to each and the end, and tells what came back.
pub fn client(bundle: &Bundle, exec: &str, paths: &[&str]) -> ExecProcessRequest {
    let script = r#"
        for $path (@ARGV) {
            socket(S, 1, 1, 0) or die "socket: $!";
            if (!connect(S, pack("Sa108", 1, $path))) { print "$path: $!\n"; next }
            syswrite(S, "word"); shutdown(S, 1);
            $all = ""; while (sysread(S, $some, 4096)) { $all .= $some }
            print "$path: $all\n";
        }"#;
    let words: Vec<&str> = PERL
        .iter()
        .chain(&["-e", script])
        .chain(paths)
        .copied()
        .collect();
    bundle.exec(exec, &words)
}

pub async fn start(bundle: &Bundle, config: &Path) -> Shim {
    let start = bundle.start();
    let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
    start.shim().await
}

fn places(test: &Test) -> (PathBuf, PathBuf) {
    let dir = test.dir().join("volume");
    fs::create_dir(&dir).expect("a new directory");
    (dir, test.dir().join("alone.sock"))
}

/// V18: in a volume, and as a volume; one that is not named stays what it was. Who listens there sees the
/// shim. It goes on under the shim's next image, and with one that listens anew.
#[test]
fn containers_connect_to_sockets_that_are_allowed() {
    crate::run(async |test| {
        let (dir, alone) = places(test);
        let (named, other) = (dir.join("named.sock"), dir.join("other.sock"));
        [&named, &other, &alone]
            .into_iter()
            .for_each(|path| listen(path));
        let allowed = format!("sockets = [{named:?}, {alone:?}, \"/nowhere/x.sock\"]");
        let config = configuration(test, &allowed);
        let volumes = [(&*dir, "/home"), (&*alone, "/etc/passwd")];
        let bundle = container(test, "c", &volumes).build();
        let shim = start(&bundle, &config).await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("c", "").await.unwrap();
        let all = ["/home/named.sock", "/home/other.sock", "/etc/passwd"];
        let told = said(&shim, &bundle, client(&bundle, "a", &all)).await;
        let expected = "/home/named.sock: uid 0: word\n\
                        /home/other.sock: Connection refused\n\
                        /etc/passwd: uid 0: word\n";
        assert_eq!(told, expected);
        let many = ["/home/named.sock"; 30];
        let told = said(&shim, &bundle, client(&bundle, "b", &many)).await;
        assert_eq!(told.matches("uid 0: word").count(), 30, "{told}");

        let binary = copy_of_the_binary(test, "a");
        let output = upgrade(test, &binary).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        let told = said(&shim, &bundle, client(&bundle, "d", &all)).await;
        assert_eq!(told, expected);

        // The host's own is another, where the VM has no volume.
        fs::remove_file(&alone).unwrap();
        listen(&alone);
        let told = said(&shim, &bundle, client(&bundle, "e", &["/etc/passwd"])).await;
        assert_eq!(told, "/etc/passwd: uid 0: word\n");
    });
}

/// V7, V18: a socket that is not allowed, and one that a link leads to, are refused by name; an annotation
/// allows one where the configuration allows the annotation.
#[test]
fn other_sockets_are_refused_by_name() {
    crate::run(async |test| {
        let (dir, alone) = places(test);
        listen(&alone);
        symlink(&alone, dir.join("link.sock")).unwrap();
        let link = format!("sockets = [{:?}]", dir.join("link.sock"));
        let config = configuration(test, &link);
        for (id, volume, why) in [
            (
                "a",
                (&*alone, "/etc/passwd"),
                "a socket, which `sockets` of",
            ),
            (
                "b",
                (&*dir, "/home"),
                "link.sock: a link, which may lead out of its volume",
            ),
        ] {
            let bundle = container(test, id, &[volume]).build();
            let shim = start(&bundle, &config).await;
            let status = refused(shim.create(bundle.create()).await);
            assert!(status.message.contains(why), "{status:?}");
            shim.stopped().await;
        }
        let annotated = |id: &str, path: &Path| {
            let bundle = container(test, id, &[(&*alone, "/etc/passwd")]);
            bundle.annotation("io.dunnage.vm.sockets", &path.to_string_lossy())
        };
        let bundle = annotated("c", &alone).build();
        let shim = start(&bundle, &config).await;
        let status = refused(shim.create(bundle.create()).await);
        let why = "annotation io.dunnage.vm.sockets: not allowed by";
        assert!(status.message.contains(why), "{status:?}");
        shim.stopped().await;
        let config = configuration(test, "annotations = [\"sockets\"]");
        let bundle = annotated("d", Path::new("x.sock")).build();
        let shim = start(&bundle, &config).await;
        let status = refused(shim.create(bundle.create()).await);
        let why = "\"x.sock\" is not an absolute path";
        assert!(status.message.contains(why), "{status:?}");
        shim.stopped().await;
        let bundle = annotated("e", &alone).build();
        let shim = start(&bundle, &config).await;
        shim.create(bundle.create()).await.unwrap();
        shim.start("e", "").await.unwrap();
        let told = said(&shim, &bundle, client(&bundle, "x", &["/etc/passwd"])).await;
        assert_eq!(told, "/etc/passwd: uid 0: word\n");
    });
}
