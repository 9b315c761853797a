// SPDX-License-Identifier: Apache-2.0
//! `ctr task checkpoint` and `ctr containers checkpoint` and `restore`, with CRIU (T21, T73).

use harness::containerd::Containerd;
use harness::peers;
use std::fs;

for_each_containerd!(
    a_checkpointed_task_leaves_its_image_and_ends,
    a_container_is_restored_from_a_checkpoint_where_it_was,
);

/// Counts the words that it is sent: how many there were is in its memory alone. Without a network
/// namespace, which CRIU would need iptables for.
fn counting(containerd: &Containerd, id: &str) {
    let script = "i=0; while :; do read x < /share/go; i=$((i+1)); echo $i $x > /share/out; done";
    containerd.run_detached(&["--net-host"], id, &["sh", "-c", script]);
}

fn a_checkpointed_task_leaves_its_image_and_ends(containerd: &mut Containerd) {
    let Some(criu) = peers::criu() else { return };
    containerd.provide(&criu);
    let (go, out) = (containerd.fifo("go"), containerd.fifo("out"));
    counting(containerd, "web");
    go.send("first");
    assert_eq!(out.line(), "1 first");
    let events = containerd.events();
    let image = containerd.dir().join("image");
    let image_path = image.to_string_lossy().into_owned();
    let words = ["task", "checkpoint", "--image-path", &image_path, "web"];
    containerd.ctr(&words).ok();
    assert!(image.join("inventory.img").exists());
    // It runs on.
    assert_eq!(containerd.status("web"), "RUNNING");
    go.send("second");
    assert_eq!(out.line(), "2 second");
    let image = containerd.dir().join("image-of-the-end");
    let image_path = image.to_string_lossy().into_owned();
    let words = [
        "task",
        "checkpoint",
        "--exit",
        "--image-path",
        &image_path,
        "web",
    ];
    containerd.ctr(&words).ok();
    assert!(image.join("inventory.img").exists());
    events.until_seen("exit web 137");
    assert_eq!(containerd.status("web"), "STOPPED");
    // What CRIU refuses is told, and its log is there: a file is no directory.
    containerd.ctr(&["task", "delete", "web"]).ok();
    containerd.ctr(&["containers", "rm", "web"]).ok();
    counting(containerd, "web");
    let file = containerd.dir().join("config.toml");
    let words = [
        "task",
        "checkpoint",
        "--image-path",
        &file.to_string_lossy(),
        "web",
    ];
    containerd.ctr(&words).fails_with("path= ");
    assert_eq!(containerd.status("web"), "RUNNING");
}

fn a_container_is_restored_from_a_checkpoint_where_it_was(containerd: &mut Containerd) {
    let Some(criu) = peers::criu() else { return };
    containerd.provide(&criu);
    let (go, out) = (containerd.fifo("go"), containerd.fifo("out"));
    counting(containerd, "web");
    go.send("before");
    assert_eq!(out.line(), "1 before");
    let image = "dunnage.test/checkpoint:1";
    let words = [
        "containers",
        "checkpoint",
        "--rw",
        "--image",
        "--task",
        "web",
        image,
    ];
    containerd.ctr(&words).ok();
    containerd.ctr(&["task", "delete", "--force", "web"]).ok();
    containerd.ctr(&["containers", "rm", "web"]).ok();
    containerd.note("again");
    containerd
        .spawn(&["containers", "restore", "--rw", "--live", "again", image])
        .finish()
        .ok();
    assert_eq!(containerd.status("again"), "RUNNING");
    go.send("after");
    assert_eq!(out.line(), "2 after", "it has counted on");
    containerd
        .exec("again", "e", &["sh", "-c", "echo in; exit 3"])
        .exits(3)
        .prints("in\n");
    // Where containerd unpacked the image, for it to stay.
    let unpacked = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("ctrd-checkpoint")
    };
    let tmp = fs::read_dir(containerd.dir().join("tmp")).expect("tmp");
    for entry in tmp.map(|entry| entry.expect("tmp")).filter(unpacked) {
        fs::remove_dir_all(entry.path()).expect("containerd's leavings");
    }
}
