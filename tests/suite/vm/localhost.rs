// SPDX-License-Identifier: Apache-2.0
//! Connections to localhost of a pod's network namespace, which are the VM's, as port-forward makes them.

use crate::attacker;
use crate::network::{Namespace, namespaces, pair};
use harness::bundle::Bundle;
use harness::stdio::Sum;
use harness::upgrade::{copy_of_the_binary, upgrade};
use harness::{Shim, Test, proc, wait};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

/// As many as a VM may have.
const MOST: usize = 64;

/// In the namespace, once somebody listens in the VM: what it says first is `word`.
fn connect(netns: &Namespace, address: &'static str, word: &'static [u8]) -> TcpStream {
    netns.inside(move || {
        wait::until_within(wait::DEADLINE, "who listens in the VM", || {
            let mut stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
            stream.set_read_timeout(Some(wait::DEADLINE)).expect("it");
            stream.write_all(word).map_err(|e| e.to_string())?;
            let mut said = vec![0; word.len()];
            stream.read_exact(&mut said).map_err(|e| e.to_string())?;
            assert_eq!(said, word);
            Ok::<_, String>(stream)
        })
    })
}

/// Whether who dials there is connected, and then reset.
fn is_reset(netns: &Namespace, address: &'static str) -> bool {
    netns.inside(move || {
        let mut stream = TcpStream::connect(address).expect("the kernel answers");
        let read = stream.read(&mut [0]);
        matches!(read, Err(e) if e.kind() == ErrorKind::ConnectionReset)
    })
}

/// A container in a VM that has a network, and its shim.
async fn run(test: &Test, netns: &Namespace) -> (Bundle, Shim) {
    let bundle = test.bundle("c");
    let bundle = bundle.set("/linux/namespaces", namespaces(netns)).build();
    let shim = bundle.running().await;
    (bundle, shim)
}

/// V16: both versions of IP, megabytes both ways at once, an end of one way that leaves the other, a
/// reset where nobody listens, a bound, and an upgrade of the shim in between; with the VM it ends.
#[test]
fn localhost_of_a_pods_namespace_is_the_vms() {
    crate::run(async |test| {
        let (netns, _world) = pair(test);
        let (bundle, shim) = run(test, &netns).await;
        // Nobody listens there yet.
        assert!(is_reset(&netns, "127.0.0.1:7004"));
        assert!(is_reset(&netns, "[::1]:7004"));
        let echo = ["nc", "-ll", "-p", "7004", "-e", "cat"];
        shim.run(bundle.exec("echo", &echo)).await;
        let mut before = connect(&netns, "127.0.0.1:7004", b"before");
        let mut six = connect(&netns, "[::1]:7004", b"six");
        drop(connect(&netns, "127.0.0.1:7004", b"gone"));

        let data: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let sum = Sum::of(&data).sha256;
        let mut writer = six.try_clone().unwrap();
        let sender = thread::spawn(move || {
            writer.write_all(&data).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        six.read_to_end(&mut back).unwrap();
        sender.join().unwrap();
        assert_eq!(Sum::of(&back).sha256, sum);

        // The shim's next image goes on with both what runs and what is to come.
        before.write_all(b"half of a ").unwrap();
        let binary = copy_of_the_binary(test, "a");
        let output = upgrade(test, &binary).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        before.write_all(b"word").unwrap();
        let mut word = [0; 14];
        before.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"half of a word");
        drop(connect(&netns, "127.0.0.1:7004", b"after"));

        let mut all = vec![before];
        while all.len() < MOST {
            all.push(connect(&netns, "127.0.0.1:7004", b"one"));
        }
        assert!(is_reset(&netns, "127.0.0.1:7004"), "one too many");
        wait::until("a line of the log", || {
            let log = shim.log();
            let said = log.contains("is one too many, and was reset");
            if said { Ok(()) } else { Err(log) }
        })
        .await;
        all.truncate(1);
        drop(connect(&netns, "127.0.0.1:7004", b"one more"));

        shim.kill("c", "", 9, false).await.unwrap();
        shim.wait("c", "").await.unwrap();
        shim.delete("c", "").await.unwrap();
        let ended = all[0].read(&mut word);
        assert!(!matches!(ended, Ok(1..)), "{ended:?}");
        let refused = netns.inside(|| TcpStream::connect("127.0.0.1:7004"));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

/// V16: a shim that is killed leaves nothing that listens there.
#[test]
fn a_killed_shim_leaves_nobody_who_listens() {
    crate::run(async |test| {
        let (netns, _world) = pair(test);
        let before = netns.devices();
        let (bundle, shim) = run(test, &netns).await;
        let echo = ["nc", "-ll", "-p", "7004", "-e", "cat"];
        shim.run(bundle.exec("echo", &echo)).await;
        let mut stream = connect(&netns, "127.0.0.1:7004", b"word");
        shim.kill_process().await;
        let ended = stream.read(&mut [0; 8]);
        assert!(!matches!(ended, Ok(1..)), "{ended:?}");
        let refused = netns.inside(|| TcpStream::connect("127.0.0.1:7004"));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        bundle.start().deleted().await;
        assert_eq!(netns.devices(), before);
    });
}

/// V16: a guest that does not answer, or says what nobody reads, keeps no client for ever, costs the shim no
/// more than its windows, and can be killed.
#[test]
fn a_guest_that_does_not_answer_or_floods_is_bounded() {
    crate::run(async |test| {
        for mode in ["no-dial", "dial-floods"] {
            let (netns, _world) = pair(test);
            let dir = test.dir().join(mode);
            let config = attacker::configuration(&dir, mode, "start_timeout = 70");
            let bundle = test.bundle(mode);
            let bundle = bundle.set("/linux/namespaces", namespaces(&netns)).build();
            let start = bundle.start();
            let start = start.env("DUNNAGE_VM_CONFIG", &config.to_string_lossy());
            let shim = start.shim().await;
            shim.create(bundle.create()).await.unwrap();
            shim.start(mode, "").await.unwrap();
            let dial = || TcpStream::connect("127.0.0.1:80").expect("the kernel answers");
            let clients = netns.inside(move || (0..MOST).map(|_| dial()).collect::<Vec<_>>());
            let mut clients = clients;
            match mode {
                "no-dial" => assert!(is_reset(&netns, "127.0.0.1:80"), "one too many"),
                _ => {
                    let mut byte = [0];
                    clients[0].read_exact(&mut byte).unwrap();
                    assert_eq!(byte, [b'x']);
                }
            }
            let most = proc::status(shim.pid(), "VmHWM").expect("its memory");
            assert!(most < 24 << 10, "the shim had {most} KiB");
            if mode == "no-dial" {
                let read = clients[0].read(&mut [0]).unwrap_err();
                assert_eq!(read.kind(), ErrorKind::ConnectionReset);
            }
            shim.kill(mode, "", 9, false).await.unwrap();
            shim.wait(mode, "").await.unwrap();
            shim.delete(mode, "").await.unwrap();
        }
    });
}
