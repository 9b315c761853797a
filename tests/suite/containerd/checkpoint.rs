// SPDX-License-Identifier: Apache-2.0
//! `ctr task checkpoint` and `ctr containers checkpoint` and `restore`, with CRIU (T21, T73).

use harness::containerd::Containerd;
use harness::peers;

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

/// `ctr task checkpoint` into a directory of this name.
fn saved(containerd: &Containerd, name: &str, options: &[&str]) {
    let image = containerd.dir().join(name);
    let path = image.to_string_lossy();
    let words = ["task", "checkpoint", "--image-path", &path];
    containerd.ctr(&[&words, options, &["web"]].concat()).ok();
    assert!(image.join("inventory.img").exists());
}

fn a_checkpointed_task_leaves_its_image_and_ends(containerd: &mut Containerd) {
    let Some(criu) = peers::criu() else { return };
    containerd.provide(&criu);
    let (go, out) = (containerd.fifo("go"), containerd.fifo("out"));
    counting(containerd, "web");
    go.send("first");
    assert_eq!(out.line(), "1 first");
    let events = containerd.events();
    saved(containerd, "image", &[]);
    // It runs on.
    assert_eq!(containerd.status("web"), "RUNNING");
    go.send("second");
    assert_eq!(out.line(), "2 second");
    saved(containerd, "image-of-the-end", &["--exit"]);
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
    containerd.save_and_restore("web", "again");
    go.send("after");
    assert_eq!(out.line(), "2 after", "it has counted on");
    containerd
        .exec("again", "e", &["sh", "-c", "echo in; exit 3"])
        .exits(3)
        .prints("in\n");
}
