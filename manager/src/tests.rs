// SPDX-License-Identifier: Apache-2.0
//! Random bytes in place of what operators and clients write: it is taken or refused, never the end of
//! the program (panic = abort).

#[path = "../../fuzz/mutate.rs"]
mod mutate;

use crate::cli;
use crate::config::Config;
use crate::filter::{Fields, Filters};

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn no_text_upsets_the_configuration() {
    let installed = include_str!("../etc/config.toml");
    let keys: String = installed
        .lines()
        .map(|line| format!("{}\n", line.trim_start_matches("# ")))
        .collect();
    let seeds = texts(&[
        installed,
        &keys,
        "[shim]\nstart_timeout = \"18446744073709551615h\"\non_death = \"keep\"\n",
        "[grpc]\nmode = \"37777777777\"\n[journal]\nmax_age = \"0ms\"\nmax_size = 9223372036854775807\n",
        "version = 1\nstate = \"/s\"\n[metrics]\naddress = \"[::1]:1\"\n",
    ]);
    mutate::some_inputs(&seeds, 10_000, |input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(mut config) = toml::from_str::<Config>(&text)
            && config.complete().is_ok()
        {
            assert_eq!(config.version, 1);
            assert!(config.grpc.address.is_absolute());
        }
    });
}

#[test]
fn no_words_upset_the_command_line() {
    let seeds = texts(&[
        "run\n-d\n--rm\n--memory\n1g\n--cpus\n0.5\n--user\n1000:1000\n--rootfs\n/r\n-e\nA=b\nx\nsh\n-c\ntrue",
        "run\n--restart\non-failure:3\n--pids\n100\n--mount\ntype=bind,src=/a,dst=/b\nx",
        "exec\n-it\nx\nsh",
        "stop\n--timeout\n99999999999h\nx",
        "kill\n--signal\nRTMIN+3\nx",
        "events\n--since\n99999999999h\n--filter\ntopic==/tasks/exit",
        "--json\n--address\n/s\n-n\nmoby\nls\n-q",
        "update\n--cpus\nnan\n--memory\n18446744073709551616k\nx",
        "logs\n-f\n--tail\n-1\nx",
    ]);
    mutate::some_inputs(&seeds, 3_000, |input| {
        let text = String::from_utf8_lossy(input);
        let _ = cli::parses(std::iter::once("dunnage").chain(text.split('\n')));
        let _ = cli::signal::number(&text);
    });
}

struct It;

impl Fields for It {
    fn field(&self, path: &[&str]) -> Option<String> {
        (path.first() == Some(&"topic")).then(|| "/tasks/exit".into())
    }
}

#[test]
fn no_text_upsets_filters() {
    let seeds = texts(&[
        "topic==\"/tasks/exit\",namespace~=|^m[a-z]+|",
        "labels.\"a.b/c\"!=x",
        "topic~=\"((((a*)*)*)*)*b{1,999}\"",
    ]);
    mutate::some_inputs(&seeds, 20_000, |input| {
        if let Ok(filters) = Filters::parse(&[String::from_utf8_lossy(input)]) {
            let _ = filters.matches(&It);
        }
    });
}
