// SPDX-License-Identifier: Apache-2.0
//! What a container wrote, whatever happens to the file.

use harness::full_disk::FullDisk;
use harness::manager::{self, Manager};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

/// Says what it is told.
const ECHO: &str = "while read line; do echo \"$line\"; done </mnt/say";

fn log(manager: &Manager, id: &str) -> PathBuf {
    let dir = manager.dir().join("r/logs").join(manager.namespace());
    dir.join(format!("{id}.json"))
}

#[track_caller]
fn until_logged(manager: &Manager, id: &str, text: &str) {
    manager.until(text, |it| {
        let logs = it.dunnage(&["logs", id]);
        logs.stdout.contains(text).then_some(())
    });
}

/// moby#45728: what is written after logrotate's copytruncate is shown, be it longer or shorter than
/// what was before.
#[test]
fn logs_follow_a_file_that_is_cut_off() {
    manager::on(|manager| {
        let say = manager.fifo("say");
        manager.run(&["-d"], "l", &["sh", "-c", ECHO]).ok();
        say.send("first");
        let mut follow = manager.spawn_dunnage(&["logs", "-f", "l"]);
        follow.close_stdin();
        let mut expected = "first\n".to_owned();
        for word in ["again", "x", "and much longer than all before"] {
            let shown = |out: &str| (out == expected).then_some(());
            follow.stdout.wait_for(&expected, shown);
            let file = File::options().write(true).open(log(manager, "l"));
            file.and_then(|file| file.set_len(0)).expect("truncate");
            say.send(word);
            expected += &format!("{word}\n");
        }
        let shown = |out: &str| (out == expected).then_some(());
        follow.stdout.wait_for(&expected, shown);
        manager.dunnage(&["kill", "-s", "KILL", "l"]).ok();
        follow.finish().ok().prints(&expected);
    });
}

/// `logs -f` is over when nothing can come any more, with all that came.
#[test]
fn logs_of_what_has_ended_end() {
    let config = "[restart]\nbackoff_min = \"10ms\"\nbackoff_max = \"50ms\"\n";
    manager::with(config, |manager| {
        manager.run(&["-d"], "once", &["echo", "one"]).ok();
        let follow = manager.dunnage(&["logs", "-f", "once"]);
        follow.ok().prints("one\n");
        // Not while its policy starts it again.
        let options = ["-d", "--restart", "on-failure:2"];
        let words = ["sh", "-c", "echo again; exit 3"];
        manager.run(&options, "more", &words).ok();
        let follow = manager.dunnage(&["logs", "-f", "more"]);
        follow.ok().prints("again\nagain\nagain\n");
        let words = ["sh", "-c", "seq 1 100000; exit 3"];
        manager.run(&["-d"], "long", &words).ok();
        let follow = manager.dunnage(&["logs", "-f", "long"]).ok();
        assert_eq!(follow.stdout.lines().count(), 100_000);
    });
}

/// A write that was cut off, within a character even, spoils no other line.
#[test]
fn a_torn_line_spoils_no_other() {
    manager::on(|manager| {
        let say = manager.fifo("say");
        manager.run(&["-d"], "g", &["sh", "-c", ECHO]).ok();
        say.send("one");
        until_logged(manager, "g", "one\n");
        let mut file = File::options()
            .append(true)
            .open(log(manager, "g"))
            .expect("the log");
        file.write_all(b"{\"log\":\"caf\xc3").expect("write");
        say.send("two");
        say.send("three");
        until_logged(manager, "g", "three\n");
        let logs = manager.dunnage(&["logs", "g"]);
        logs.ok().prints("one\ntwo\nthree\n");
    });
}

/// nerdctl#4603: the container goes on, and so does its log once there is room.
#[test]
fn a_log_goes_on_when_a_full_disk_has_room_again() {
    manager::on(|manager| {
        let disk = FullDisk::half_full(manager.dir().join("disk"), 64 << 10);
        let say = manager.fifo("say");
        // More than fits at first, less than fits with the room.
        let script = format!("seq 1 600; {ECHO}");
        let file = disk.path().join("g.json");
        let place = file.display().to_string();
        let uri = format!("binary://{}?log={place}", manager::binary().display());
        let options = ["-d", "--log-uri", &uri];
        manager.run(&options, "g", &["sh", "-c", &script]).ok();
        manager.until("the disk full", |_| {
            let size = fs::metadata(&file).map_or(0, |file| file.len());
            (size == 32 << 10).then_some(())
        });
        disk.make_room();
        say.send("after");
        until_logged(manager, "g", "after\n");
        // What did not fit is not there; all else is, in its order and whole.
        let logs = manager.dunnage(&["logs", "g"]).ok().stdout;
        let numbers = logs.strip_suffix("after\n").expect("the end").lines();
        let numbers: Vec<u32> = numbers.map(|line| line.parse().expect(line)).collect();
        assert!(numbers.len() > 300 && numbers.is_sorted(), "{logs}");
        manager.dunnage(&["rm", "-f", "g"]).ok();
        // It is not one of those that are the manager's to remove.
        assert!(fs::exists(&file).expect("the log"));
    });
}

/// otel-collector#39653, vector#14644: CRI's form keeps bytes, JSON's keeps characters.
#[test]
fn logs_keep_what_was_written() {
    manager::on(|manager| {
        let script = "printf 'latin1 \\344\\n'; head -c 16383 /dev/zero | tr '\\0' a; \
                      printf '\\346\\226\\271\\n'";
        let cri = manager.dir().join("cri");
        let uri = format!(
            "binary://{}?log={}",
            manager::binary().display(),
            cri.display()
        );
        let words = ["sh", "-c", script];
        let long = "a".repeat(16383);
        manager.run(&["-d", "--log-uri", &uri], "c", &words).ok();
        manager.dunnage(&["wait", "c"]).ok();
        let shown = manager.client(&["logs", "-f", "c"]).output().expect("logs");
        let written = [b"latin1 \xe4\n", long.as_bytes(), "\u{65b9}\n".as_bytes()].concat();
        assert!(shown.stdout == written, "{} bytes", shown.stdout.len());
        let file = fs::read(&cri).expect("the log");
        let mut parts = file.split(|&byte| byte == b'\n');
        let text = |line: &[u8]| {
            line.splitn(4, |&byte| byte == b' ')
                .last()
                .unwrap()
                .to_vec()
        };
        assert_eq!(text(parts.next().expect("a line")), b"latin1 \xe4");
        // Parts that are joined are the same again, and none is cut within a character.
        let parts: Vec<Vec<u8>> = parts.take(2).map(text).collect();
        assert!(parts.iter().all(|part| std::str::from_utf8(part).is_ok()));
        assert_eq!(parts.concat(), &written[9..written.len() - 1]);
        manager.run(&["-d"], "j", &words).ok();
        let logs = manager.dunnage(&["logs", "-f", "j"]);
        logs.ok()
            .prints(&format!("latin1 \u{fffd}\n{long}\u{65b9}\n"));
    });
}

/// A container's log goes with it, and a new one has only its own lines.
#[test]
fn rm_removes_logs() {
    manager::on(|manager| {
        let logged = |word: &str| {
            manager
                .run(
                    &["-d"],
                    "x",
                    &["sh", "-c", &format!("echo {word}; echo {word}")],
                )
                .ok();
            manager.dunnage(&["logs", "-f", "x"]).ok().stdout
        };
        let files = || {
            let dir = log(manager, "x");
            fs::read_dir(dir.parent().expect("a directory"))
                .expect("logs")
                .count()
        };
        assert_eq!(logged("old"), "old\nold\n");
        // As if it had been rotated often, when more files were kept.
        for n in 1..9 {
            let name = format!("{}.{n}", log(manager, "x").display());
            fs::write(name, "{}\n").expect("an older log");
        }
        manager.dunnage(&["rm", "x"]).ok();
        assert_eq!(files(), 0);
        assert_eq!(logged("kept"), "kept\nkept\n");
        manager.dunnage(&["rm", "--keep-logs", "x"]).ok();
        let kept = manager.dunnage(&["logs", "-f", "x"]);
        kept.ok().prints("kept\nkept\n");
        assert_eq!(logged("new"), "new\nnew\n");
        manager.dunnage(&["rm", "x"]).ok();
        manager.run(&["-d"], "x", &["/no/such/program"]).exits(127);
        assert_eq!(files(), 0);
    });
}

/// `[logger]`, as it is when the container is made, wherever the configuration is.
#[test]
fn logs_are_as_large_as_the_configuration_says() {
    manager::with("[logger]\nmax_size = 3000\nmax_files = 2\n", |manager| {
        manager.run(&["-d"], "x", &["seq", "1", "1000"]).ok();
        let shown = manager.dunnage(&["logs", "-f", "x"]).ok().stdout;
        assert!(shown.ends_with("\n999\n1000\n"), "{shown}");
        // What was set aside is shown, too.
        assert!(shown.lines().count() > 60, "{shown}");
        let dir = log(manager, "x");
        let files = fs::read_dir(dir.parent().expect("a directory")).expect("logs");
        let files = files.map(|file| file.expect("an entry").metadata().expect("its size"));
        // The socket by which it is heard is none of them.
        let files = files.filter(std::fs::Metadata::is_file);
        let sizes: Vec<u64> = files.map(|file| file.len()).collect();
        assert_eq!(sizes.len(), 3, "{sizes:?}");
        assert!(sizes.iter().all(|&size| size <= 3000), "{sizes:?}");
    });
}

/// The logger's stderr is nobody's: it would be lost in silence.
#[test]
fn a_configuration_that_is_no_good_loses_no_output() {
    manager::on(|manager| {
        let broken = manager.dir().join("broken.toml");
        fs::write(&broken, "[logger]\nmax_size = \"a lot\"\n").expect("a file");
        let file = manager.dir().join("x.json");
        let uri = format!(
            "binary://{}?--config={}&log={}",
            manager::binary().display(),
            broken.display(),
            file.display()
        );
        let options = ["-d", "--log-uri", &uri];
        manager.run(&options, "x", &["echo", "said"]).ok();
        manager.dunnage(&["wait", "x"]).ok();
        let logs = manager.dunnage(&["logs", "-f", "x"]);
        logs.ok().prints("said\n");
    });
}
