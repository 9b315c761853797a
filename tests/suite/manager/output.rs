// SPDX-License-Identifier: Apache-2.0
//! What the client prints for programs, and for who reads a manual.

use harness::manager;
use serde_json::Value;

/// Units are in the keys, and a record is a line.
#[test]
fn json_has_numbers_as_numbers() {
    manager::on(|manager| {
        manager
            .run(&["-d", "--memory", "64m"], "c", &["sleep", "1000"])
            .ok();
        manager
            .dunnage(&["exec", "c", "sh", "-c", "exit 5"])
            .exits(5);
        for (args, key) in [
            (&["ls"][..], "pid"),
            (&["ps", "c"], "pid"),
            (&["exits", "c"], "seq"),
            (&["exits", "c"], "pid"),
            (&["exits", "c"], "status"),
            (&["stats", "--no-stream"], "cpu_percent"),
            (&["stats", "--no-stream"], "memory_bytes"),
            (&["stats", "--no-stream"], "pids"),
            (&["info"], "pid"),
            (&["info"], "memory_bytes"),
            (&["info"], "tasks"),
            (&["inspect", "c"], "id"),
        ] {
            let records = manager.json(args);
            let is_right = |record: &Value| record[key].is_number() || key == "id";
            assert!(
                !records.is_empty() && records.iter().all(is_right),
                "{args:?} {key}: {records:?}"
            );
        }
        let stats = manager.json(&["stats", "--no-stream"]);
        assert_eq!(stats[0]["limit_bytes"], 64 << 20);
        // What is not there is no number.
        assert!(stats[0]["vm_memory_bytes"].is_null(), "{stats:?}");
        // People have units.
        let table = manager.dunnage(&["stats", "--no-stream"]).ok().stdout;
        assert!(table.contains("64.0MiB"), "{table}");
    });
}

/// The options that `help` tells of a command.
fn options(help: &str) -> Vec<&str> {
    let words = help.split_whitespace();
    words
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .collect()
}

#[test]
fn every_command_has_a_manual_page_with_its_options() {
    manager::on(|manager| {
        let help = manager.plain(&["--help"]).ok().stdout;
        let all = manager.plain(&["man"]).ok().stdout;
        let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let commands = commands.map_while(|line| line.split_whitespace().next());
        let commands: Vec<&str> = commands.filter(|name| *name != "help").collect();
        assert!(commands.len() > 20, "{help}");
        for name in commands {
            let page = manager.plain(&["man", name]).ok().stdout.replace('\\', "");
            assert!(page.contains(&format!("dunnage-{name}")), "{page}");
            assert!(
                all.replace('\\', "").contains(&format!("dunnage-{name}")),
                "{all}"
            );
            let help = manager.plain(&[name, "--help"]).ok().stdout;
            for option in options(&help) {
                assert!(
                    page.contains(option.trim_end_matches([',', '.'])),
                    "{name} {option}: {page}"
                );
            }
        }
        manager.plain(&["man", "ns", "create"]).ok();
        manager
            .plain(&["man", "nonsense"])
            .exits(125)
            .fails_with("nonsense");
    });
}
