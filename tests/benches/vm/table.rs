// SPDX-License-Identifier: Apache-2.0
//! The figures of VMs as a table for docs/bench.md, and their goals.

use super::density::{self, COUNTS};
use super::files::WORK;
use super::{CALLS, FLAVOURS, SIZES, STEPS};
use serde_json::Value;
use std::fmt::Write as _;

/// From the start of QEMU to the agent's hello: the first steps.
const TO_HELLO: usize = 3;

fn median(of: &Value, pointer: &str) -> Option<f64> {
    of.pointer(pointer)?.pointer("/median")?.as_f64()
}

/// Of the medians' sum.
fn hello(flavour: &Value) -> Option<f64> {
    let steps = STEPS[..TO_HELLO].iter();
    steps
        .map(|step| median(flavour, &format!("/steps/{step}")))
        .sum()
}

/// Markdown; empty if VMs were never measured.
pub fn table(results: &Value) -> String {
    let vm = &results["vm"];
    let flavours: Vec<&str> = FLAVOURS
        .into_iter()
        .filter(|name| vm[name].is_object())
        .collect();
    if flavours.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n| VM without KVM, ms |");
    for flavour in &flavours {
        let _ = write!(text, " {flavour} kernel |");
    }
    let _ = writeln!(text, "\n|---|{}", "---:|".repeat(flavours.len()));
    let mut row = |name: &str, digits: usize, figure: &dyn Fn(&Value) -> Option<f64>| {
        let _ = write!(text, "| {name} |");
        for flavour in &flavours {
            let cell = figure(&vm[flavour]);
            let cell = cell.map_or("–".to_owned(), |f| format!("{f:.digits$}"));
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    };
    row("bare boot to a trivial init", 0, &|of| median(of, "/bare"));
    row("boot to the agent's hello", 0, &hello);
    row("… of the bare boot (goal: 1.15)", 2, &|of| {
        Some(hello(of)? / median(of, "/bare")?)
    });
    if vm["distro"].is_object() && vm["tuned"].is_object() {
        row("… of the distro kernel's (goal: 0.6)", 2, &|of| {
            Some(hello(of)? / hello(&vm["distro"])?)
        });
    }
    for (step, name) in STEPS.iter().zip([
        "QEMU, until the kernel runs",
        "kernel, until the agent runs",
        "agent, until its hello",
        "Create, without those",
        "Start to the first output",
    ]) {
        row(name, 0, &|of| median(of, &format!("/steps/{step}")));
    }
    row(
        "shim's `start` to the first output (goals: 1200, 600)",
        0,
        &|of| median(of, "/shim"),
    );
    row("the same, a VM of the pool's", 0, &|of| median(of, "/pool"));
    row("… of the boot's (goal: 0.2)", 2, &|of| {
        Some(median(of, "/pool")? / median(of, "/shim")?)
    });
    row("… of a template", 0, &|of| median(of, "/template/shim"));
    row("… of the cold one (goal: 0.4)", 2, &|of| {
        Some(median(of, "/template/shim")? / median(of, "/shim")?)
    });
    row("QEMU of a template, until the agent answers", 0, &|of| {
        median(of, "/template/restore")
    });
    row("exec cycle in a running VM", 0, &|of| median(of, "/exec"));
    for call in CALLS {
        row(&format!("… of it {call}"), 1, &|of| {
            median(of, &format!("/calls/{call}"))
        });
    }
    row("shim's own memory, KiB (goal: 2048)", 0, &|of| {
        median(of, "/own")
    });
    for size in SIZES {
        let name = format!("QEMU's PSS, idle guest of {size} MiB, MiB");
        row(&name, 0, &|of| {
            Some(of.pointer(&format!("/memory/{size}/pss"))?.as_f64()? / 1024.0)
        });
    }
    for (pointer, kind) in [("/held", "booted"), ("/template/held", "of a template")] {
        for count in COUNTS {
            let name = format!("QEMU's PSS, each of {count} {kind}, 512 MiB, MiB");
            row(&name, 0, &|of| {
                Some(of.pointer(&format!("{pointer}/{count}"))?.as_f64()? / 1024.0)
            });
        }
        row("… of one more", 0, &|of| {
            Some(density::slope(of.pointer(pointer)?)? / 1024.0)
        });
        row("… of a thousand, GiB", 0, &|of| {
            Some(density::slope(of.pointer(pointer)?)? * 1000.0 / f64::from(1 << 20))
        });
    }
    if let Some(qemu) = vm["qemu"].as_str() {
        let _ = writeln!(text, "\nThe VMs are those of {qemu}.");
    }
    flavours
        .iter()
        .for_each(|name| text += &files(name, &vm[name]));
    text
}

/// Of a flavour; empty if it was never measured.
fn files(name: &str, flavour: &Value) -> String {
    let figure = |place: &str, work: &str| flavour["files"][place][work]["median"].as_f64();
    let mut text = format!(
        "\n| Files in a VM, {name} kernel, ms | of the host's | the guest's own ext4 | ratio | without a VM |\n\
         |---|---:|---:|---:|---:|\n"
    );
    for (work, ..) in WORK {
        let figures = ["share", "disk", "host"].map(|place| figure(place, work));
        let [Some(share), Some(disk), Some(host)] = figures else {
            return String::new();
        };
        let ratio = share / disk;
        let _ = writeln!(
            text,
            "| {work} | {share:.0} | {disk:.0} | {ratio:.2} | {host:.0} |"
        );
    }
    text
}
