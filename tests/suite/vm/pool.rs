// SPDX-License-Identifier: Apache-2.0
//! VMs in store: a shim takes one where there is one of its kind, boots where there is none, and has
//! it from then on as if it had booted it.

use crate::network::{namespaces, pair};
use crate::said;
use harness::containerd::DEADLINE;
use harness::containerd::ctr::ends_within;
use harness::cri::Cri;
use harness::cri::stream::DATA;
use harness::inspect::Stopped;
use harness::pool::{BOOTS, Pool, base, holds, names};
use harness::upgrade::{copy_of_the_binary, upgrade};
use harness::{Shim, Test, peers, proc, wait};
use nix::sys::socket::{self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

/// Who holds the VM of the shim's container, and QEMU and the file server; `None` if it has booted that.
async fn held(shim: &Shim, id: &str) -> Option<(i32, Vec<i32>)> {
    let qemu = shim.state(id, "").await.expect("State").pid as i32;
    let parent = proc::stat(qemu).expect("QEMU").ppid;
    let pids = holds(parent)?;
    assert_eq!((pids[0], pids.len()), (qemu, 2));
    Some((parent, pids))
}

/// Ends the container and its shim; nothing is left of the VM.
async fn end(test: &Test, shim: &Shim, id: &str) {
    let held = held(shim, id).await;
    shim.kill(id, "", 9, false).await.expect("Kill");
    assert_eq!(shim.wait(id, "").await.expect("Wait").exit_status, 137);
    shim.delete(id, "").await.expect("Delete");
    shim.shutdown(id).await.expect("Shutdown");
    shim.stopped().await;
    for pid in held
        .into_iter()
        .flat_map(|(holder, pids)| [vec![holder], pids].concat())
    {
        wait::ended(pid).await;
    }
    assert!(!test.vm_dir(id).exists());
}

/// V20: a container in a VM that was taken is as any other: its files, streams and volumes, its host's name,
/// its limits and cgroup, its figures, its shim's next image; two have nothing in common that was to be
/// one's own; and what was taken comes again.
#[test]
fn a_vm_from_the_pool_is_as_any_other() {
    crate::run(async |test| {
        let pool = Pool::of(test.dir(), 2);
        let secrets = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; \
                       head -c 32 /dev/urandom | sha256sum; hostname";
        let mut all = BTreeSet::new();
        let mut shims = Vec::new();
        for id in ["a", "b"] {
            let bundle = test.bundle(id).share().memory_limit(64 << 20);
            let bundle = bundle.set("/hostname", json!(format!("host-{id}"))).build();
            let shim = pool.running(&bundle).await;
            let (_, pids) = held(&shim, id).await.expect("it was taken");
            for pid in &pids {
                let nice = nice(*pid);
                assert_eq!(nice, 0, "{}", proc::describe(*pid));
                let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
                let own = format!("/{}-{id}\n", test.namespace());
                assert!(cgroups.contains(&own), "{own}: {cgroups}");
            }
            let told = said(&shim, &bundle, bundle.exec_sh("secrets", secrets)).await;
            all.extend(told.lines().map(str::to_owned));
            let script = "echo here >/mnt/file; date +%s; ls /run /tmp | grep -c check";
            let told = said(&shim, &bundle, bundle.exec_sh("look", script)).await;
            assert_eq!(
                fs::read_to_string(test.share().join("file")).unwrap(),
                "here\n"
            );
            let (time, left) = told.split_once('\n').expect("two lines");
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
            assert!(now.abs_diff(time.parse().unwrap()) <= 2, "{time} at {now}");
            assert_eq!(left, "0\n", "of what has warmed it");
            shims.push((bundle, shim));
        }
        assert_eq!(all.len(), 8, "{all:?}");
        let (bundle, shim) = &shims[0];
        let output = upgrade(test, &copy_of_the_binary(test, "a")).await;
        assert_eq!(output.code(), Some(0), "{output:?}");
        let told = said(shim, bundle, bundle.exec_sh("next", "echo on"));
        assert_eq!(told.await, "on\n");
        shim.pause("a").await.unwrap();
        shim.resume("a").await.unwrap();
        assert!(shim.stats("a").await.unwrap().stats.is_some());
        pool.has(2);
        for (bundle, shim) in &shims {
            end(test, shim, &bundle.id).await;
        }
        pool.end();
    });
}

fn nice(pid: i32) -> i64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    rest.split_whitespace()
        .nth(16)
        .expect("nice")
        .parse()
        .expect("a number")
}

/// V20: whoever ends: a pool that is killed takes along what nobody has, and nothing else; a shim that is
/// killed takes along its VM, or is brought back to it.
#[test]
fn vms_end_with_who_has_them() {
    crate::run(async |test| {
        let pool = Pool::of(test.dir(), 3);
        let dies = test.bundle("dies").build();
        let killed = pool.running(&dies).await;
        let (holder, mut pids) = held(&killed, "dies").await.expect("it was taken");
        pids.push(holder);
        let lives = test.bundle("lives").build();
        let kept = pool.running_with(&lives, "adopt").await;
        let (_, of_kept) = held(&kept, "lives").await.expect("it was taken");
        assert_eq!(inspected_pool(test).await, [true, true]);

        let spares = proc::children(pool.pid())
            .into_iter()
            .filter(|pid| holds(*pid).is_none());
        let of_spares = spares.flat_map(|pid| [vec![pid], proc::children(pid)].concat());
        let of_spares: Vec<i32> = of_spares.collect();
        assert!(of_spares.len() >= 3, "{of_spares:?}");
        wait::signal(pool.pid(), libc::SIGKILL).unwrap();
        for pid in of_spares {
            wait::ended(pid).await;
        }
        wait::until("an empty store", || {
            let left = names(&pool.dir);
            if left == ["lock"] {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        })
        .await;
        let told = said(&killed, &dies, dies.exec_sh("e", "echo lives"));
        assert_eq!(told.await, "lives\n");

        killed.kill_process().await;
        for pid in pids {
            wait::ended(pid).await;
        }
        let deleted = dies.start().binary(&peers::vm_shim()).deleted().await;
        assert_eq!(deleted.exit_status, 137);
        assert!(!test.vm_dir("dies").exists());

        wait::signal(kept.pid(), libc::SIGKILL).unwrap();
        wait::ended(kept.pid()).await;
        let next = Shim::connect(&lives, kept.answer().clone()).await;
        let told = said(&next, &lives, lives.exec_sh("e", "echo goes on"));
        assert_eq!(told.await, "goes on\n");
        assert_eq!(held(&next, "lives").await.expect("still").1, of_kept);
        end(test, &next, "lives").await;
    });
}

/// V20: of a VM that runs its first container when its pool is killed nothing stays.
#[test]
fn a_killed_pool_leaves_nothing_of_a_vm_that_is_being_made() {
    crate::run(async |test| {
        let pool = Pool::start(test.dir(), &base(), "size = 1");
        let is_at_work = || {
            let names = names(&pool.dir);
            let is_there = names.iter().any(|name| name.starts_with("bundle-"));
            is_there.then_some(()).ok_or(format!("{names:?}"))
        };
        wait::until_within(BOOTS, "a VM's first container", is_at_work);
        let spares = proc::children(pool.pid());
        wait::signal(pool.pid(), libc::SIGKILL).unwrap();
        for pid in spares {
            wait::ended(pid).await;
        }
        assert_eq!(names(&pool.dir), ["lock"]);
    });
}

/// What `inspect` says of each VM, whether it was the pool's.
async fn inspected_pool(test: &Test) -> Vec<bool> {
    let output = harness::inspect::asked(test, &["-json"]).await;
    let each = output.out();
    let each = each.lines().map(|line| {
        let told: serde_json::Value = serde_json::from_str(line).expect("JSON");
        told["runtime"]["vm"]["from_pool"]
            .as_bool()
            .expect("it says so")
    });
    each.collect()
}

/// V20: a network namespace that somebody has made comes into a VM that had booted before.
#[test]
fn a_vm_from_the_pool_has_its_containers_network() {
    crate::run(async |test| {
        let pool = Pool::of(test.dir(), 1);
        let (container, world) = pair(test);
        let bundle = test
            .bundle("c")
            .set("/linux/namespaces", namespaces(&container));
        let bundle = bundle.build();
        let shim = pool.running(&bundle).await;
        held(&shim, "c").await.expect("it was taken");
        let script = "ip -4 -o addr show eth0 | grep -o '10.9.0.2/24'; ip route | grep -c default; \
                      cat /sys/class/net/eth0/address 2>/dev/null || ip link show eth0 | grep -o '02:00:00:00:00:02'";
        let told = said(&shim, &bundle, bundle.exec_sh("look", script)).await;
        assert_eq!(told, "10.9.0.2/24\n1\n02:00:00:00:00:02\n");
        world.ping("10.9.0.2");
        end(test, &shim, "c").await;
        assert!(
            !container.devices().contains("dunnage"),
            "{}",
            container.devices()
        );
        assert!(
            !container.devices().contains("1 ingress"),
            "{}",
            container.devices()
        );
    });
}

/// V20: a pod's, in both kinds of pods: its network, its name, and what is forwarded to it.
fn a_pod_has_a_vm_from_the_pool(cri: &mut Cri) {
    let dir = cri.containerd.dir().to_owned();
    let pool = Pool::of(&dir, 1);
    let shim = dir.join("bin/containerd-shim-vm-v2");
    let (config, own) = (pool.config.display(), peers::vm_shim());
    let script = format!(
        "export DUNNAGE_VM_CONFIG={config}\nexec {} \"$@\"\n",
        own.display()
    );
    fs::write(&shim, format!("#!/bin/sh\n{script}")).expect("a script");
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("its mode");
    for handler in ["vm", "sandboxes"] {
        pool.has(1);
        let pod = cri
            .run_pod(cri.pod(handler), handler)
            .expect("RunPodSandbox");
        let vm = cri.pause_of(&pod);
        let holder = proc::stat(vm).expect("QEMU").ppid;
        assert!(holds(holder).is_some(), "{}", proc::describe(holder));
        let id = cri.launch(&pod, cri.container("a", &["sleep", "100000"]));
        let look = cri.exec_sync(&id, &["sh", "-c", "hostname; ip -4 addr show eth0"]);
        let look = String::from_utf8_lossy(&look.stdout).into_owned();
        let address = cri.address_of(&pod);
        assert!(
            look.starts_with(&format!("{handler}\n")) && look.contains(&address),
            "{look}"
        );
        let answer = cri.ping(&address);
        assert!(answer.status.success(), "{answer:?}");
        let serve = "nc -ll -p 8081 -e cat >/dev/null 2>&1 & \
                     until nc 127.0.0.1 8081 </dev/null; do usleep 10000; done";
        assert_eq!(cri.exec_sync(&id, &["sh", "-c", serve]).exit_code, 0);
        let mut forwarded = cri.port_forward(&pod, 8081);
        forwarded.write("through the port");
        forwarded.expect(DATA, "through the port");
        drop(forwarded);
        cri.stop_pod(&pod.id).expect("StopPodSandbox");
        assert!(ends_within(vm, DEADLINE), "{}", proc::describe(vm));
        cri.remove_pod(&pod.id).expect("RemovePodSandbox");
        assert!(ends_within(holder, DEADLINE), "{}", proc::describe(holder));
    }
    pool.end();
}

#[test]
fn containerd_2_1_runs_pods_in_vms_from_the_pool() {
    crate::prepare();
    harness::cri::on("2.1", a_pod_has_a_vm_from_the_pool);
}

/// Listens at `path`, and answers what `says` says to who connects first.
fn listens(path: &Path, says: &'static [u8]) -> std::thread::JoinHandle<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None);
    let listener = listener.expect("a socket");
    socket::bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).expect("bind");
    socket::listen(&listener, Backlog::new(1).unwrap()).expect("listen");
    std::thread::spawn(move || {
        let fd = socket::accept(listener.as_raw_fd()).expect("who wants a VM");
        socket::recv(fd, &mut [0; 1024], MsgFlags::empty()).expect("what it wants");
        socket::send(fd, says, MsgFlags::empty()).expect("an answer");
        nix::unistd::close(fd).expect("close");
    })
}

/// V20: a pool that has none, has others, is dead, hangs or lies costs a boot, and a line in the log.
#[test]
fn a_pool_that_is_of_no_use_costs_a_boot() {
    crate::run(async |test| {
        let pool = Pool::of(test.dir(), 1);
        let spare = pool.has(1)[0];
        let kind = pool.sockets()[0].parent().expect("a directory").to_owned();
        let cold = async |id: &str, why: &str| {
            let bundle = test.bundle(id).build();
            let shim = pool.running(&bundle).await;
            assert!(held(&shim, id).await.is_none(), "{id}");
            let log = shim.log();
            let line = log.lines().find(|line| line.contains("one is booted"));
            let line = line.unwrap_or_else(|| panic!("{id}: {log}"));
            assert!(line.contains(why), "{id}: {line}");
            end(test, &shim, id).await;
        };
        // Another kind is in store.
        let large = test.bundle("large").memory_limit(700 << 20).build();
        let shim = pool.running(&large).await;
        assert!(held(&shim, "large").await.is_none());
        assert!(
            shim.log().contains("none of its kind is in store"),
            "{}",
            shim.log()
        );
        end(test, &shim, "large").await;
        let stopped = Stopped::new(spare);
        cold("hangs", "no answer").await;
        drop(stopped);
        pool.end();
        cold("gone", "none of its kind is in store").await;
        fs::create_dir_all(&kind).unwrap();
        for (id, says, why) in [
            ("lies", b"{}" as &[u8], "missing field"),
            ("says-nothing", b"", "unexpected end of file"),
        ] {
            let socket = kind.join(id);
            let lying = listens(&socket, says);
            cold(id, why).await;
            lying.join().expect("it has answered");
            fs::remove_file(&socket).unwrap();
        }
        fs::File::create(kind.join("file")).unwrap();
        cold("no-socket", "Connection refused").await;
    });
}

/// V20: what was booted with settings that count no more is thrown away, and one that is killed in store
/// comes again; `check` takes one, too.
#[test]
fn a_pool_follows_its_settings() {
    crate::run(async |test| {
        let pool = Pool::of(test.dir(), 1);
        let first = pool.has(1)[0];
        wait::signal(first, libc::SIGKILL).unwrap();
        wait::ended(first).await;
        let again = |old: i32| {
            let text = |pids: &[i32]| format!("{pids:?}");
            wait::until_within(harness::pool::BOOTS, "another VM in store", || {
                let pids = pool.has(1);
                if pids[0] != old && proc::alive(pids[0]) {
                    Ok(pids[0])
                } else {
                    Err(text(&pids))
                }
            })
        };
        let second = again(first);
        let text = fs::read_to_string(&pool.config).unwrap();
        fs::write(&pool.config, format!("max_open_files = 8192\n{text}")).unwrap();
        wait::signal(pool.pid(), libc::SIGHUP).unwrap();
        wait::ended(second).await;
        again(second);
        let mut check = Command::new(peers::vm_shim());
        check.arg("check").env("DUNNAGE_VM_CONFIG", &pool.config);
        let output = wait::output(check, None).await;
        assert!(output.out().contains("from the pool"), "{output:?}");
        pool.end();
        // Only one at a time.
        let second = Pool::of(test.dir(), 1);
        let mut other = Command::new(peers::vm_shim());
        other.arg("pool").env("DUNNAGE_VM_CONFIG", &second.config);
        let output = wait::output(other, None).await;
        assert!(output.err().contains("another pool runs"), "{output:?}");
    });
}
