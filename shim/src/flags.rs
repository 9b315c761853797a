// SPDX-License-Identifier: Apache-2.0
//! The command line of a shim, in the syntax of Go's `flag` package (contract B2, B3).

use std::fmt::Write;

/// The actions that are an operator's, not containerd's.
pub const UPGRADE: &str = "upgrade";
pub const INSPECT: &str = "inspect";

/// What containerd, or an operator, asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flags {
    pub namespace: String,
    pub id: String,
    /// containerd's gRPC address.
    pub address: String,
    pub publish_binary: String,
    pub bundle: String,
    pub socket: String,
    pub debug_socket: String,
    pub debug: bool,
    pub version: bool,
    pub info: bool,
    /// Of `inspect`: for machines.
    pub json: bool,
    /// The first positional argument; empty means serve.
    pub action: String,
}

/// Why there is nothing to do.
#[derive(Debug, PartialEq)]
pub enum Stop {
    /// `-h`: usage was asked for.
    Help,
    /// The line does not parse; the text says why.
    Bad(String),
}

enum Target<'a> {
    Text(&'a mut String),
    Switch(&'a mut bool),
}

const HELP: [(&str, &str); 11] = [
    ("address string", "grpc address back to main containerd"),
    ("bundle string", "path to the bundle if not workdir"),
    ("debug", "enable debug output in logs"),
    ("debug-socket string", "debug socket path to serve"),
    ("id string", "id of the task"),
    (
        "info",
        "get the option protobuf from stdin, print the shim info protobuf to stdout, and exit",
    ),
    ("namespace string", "namespace that owns the shim"),
    (
        "publish-binary string",
        "path to publish binary (used for publishing events)",
    ),
    ("socket string", "socket path to serve"),
    ("v", "show the shim version and exit"),
    ("version", "show the shim version and exit"),
];

/// Usage, as Go prints it, and an operator's `commands`, each with what it does.
pub fn usage(program: &str, commands: &[(&str, &str)]) -> String {
    let mut text = format!("Usage of {program}:\n");
    for (flag, help) in HELP {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  -{flag}\n    \t{help}");
    }
    let upgrade = (
        UPGRADE,
        "replace the program of running shims by this one, and exit",
    );
    for (command, help) in commands.iter().chain([&upgrade]) {
        let _ = writeln!(text, "  {command}\n    \t{help}");
    }
    text
}

impl Flags {
    /// Parses the arguments after the program's name: `-x v`, `--x v`, `-x=v`; switches alone or
    /// with `=true` or `=false`. Flags end at the first argument that is none, or at `--`; what
    /// follows is nobody's, as with Go's shim. Only `upgrade` and `inspect`, which are an operator's
    /// to type, have flags behind them too, and nothing else: a word too much, or a variable that is
    /// empty, must not make them every shim's.
    ///
    /// # Errors
    /// [`Stop::Bad`] names the flag.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, Stop> {
        let mut flags = Self::default();
        let mut args = args.into_iter();
        let mut empty = None;
        while let Some(arg) = args.next() {
            let is_flag = arg.starts_with('-') && arg != "-";
            if flags.is_operators() && (!is_flag || arg == "--") {
                let action = &flags.action;
                return Err(Stop::Bad(format!("{action} takes no argument: {arg:?}")));
            }
            if !is_flag || arg == "--" {
                // "--" ends the flags, "-" is an argument.
                let action = if is_flag { args.next() } else { Some(arg) };
                flags.action = action.unwrap_or_default();
                if flags.is_operators() {
                    continue;
                }
                break;
            }
            let body = arg.strip_prefix("--").unwrap_or(&arg[1..]);
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            match flags.target(name).ok_or_else(|| unknown(name))? {
                Target::Text(text) => {
                    let missing = || Stop::Bad(format!("flag needs an argument: -{name}"));
                    *text = value.or_else(|| args.next()).ok_or_else(missing)?;
                    if text.is_empty() {
                        empty = Some(name.to_owned());
                    }
                }
                Target::Switch(switch) => *switch = parse_switch(name, value.as_deref())?,
            }
        }
        match empty {
            _ if flags.json && flags.action != INSPECT => Err(unknown("json")),
            Some(name) if flags.is_operators() => {
                Err(Stop::Bad(format!("{}: -{name} is empty", flags.action)))
            }
            _ => Ok(flags),
        }
    }

    fn is_operators(&self) -> bool {
        matches!(self.action.as_str(), UPGRADE | INSPECT)
    }

    /// The arguments of a daemon that serves what this one is to serve: without `action` a new one's.
    pub fn of_daemon(&self, action: Option<&str>) -> Vec<String> {
        let values = [
            ("-namespace", &self.namespace),
            ("-id", &self.id),
            ("-address", &self.address),
        ];
        let values = values.into_iter();
        let values = values.flat_map(|(flag, value)| [flag.to_owned(), value.clone()]);
        let debug = self.debug.then(|| "-debug".to_owned());
        values
            .chain(debug)
            .chain(action.map(str::to_owned))
            .collect()
    }

    fn target(&mut self, name: &str) -> Option<Target<'_>> {
        Some(match name {
            "namespace" => Target::Text(&mut self.namespace),
            "id" => Target::Text(&mut self.id),
            "address" => Target::Text(&mut self.address),
            "publish-binary" => Target::Text(&mut self.publish_binary),
            "bundle" => Target::Text(&mut self.bundle),
            "socket" => Target::Text(&mut self.socket),
            "debug-socket" => Target::Text(&mut self.debug_socket),
            "debug" => Target::Switch(&mut self.debug),
            "v" | "version" => Target::Switch(&mut self.version),
            "info" => Target::Switch(&mut self.info),
            "json" => Target::Switch(&mut self.json),
            _ => return None,
        })
    }
}

fn unknown(name: &str) -> Stop {
    if matches!(name, "h" | "help") {
        Stop::Help
    } else {
        Stop::Bad(format!("flag provided but not defined: -{name}"))
    }
}

fn parse_switch(name: &str, value: Option<&str>) -> Result<bool, Stop> {
    match value {
        None | Some("true" | "t" | "T" | "TRUE" | "True" | "1") => Ok(true),
        Some("false" | "f" | "F" | "FALSE" | "False" | "0") => Ok(false),
        Some(other) => Err(Stop::Bad(format!(
            "invalid boolean value \"{other}\" for -{name}: parse error"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, Stop> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    /// B6: as containerd writes them, and the other ways of Go's `flag` package (B2).
    #[test]
    fn containerds_command_lines_parse() {
        let start =
            parse("-namespace n -address /a -publish-binary /p -id i -debug start").unwrap();
        assert_eq!((start.namespace.as_str(), start.id.as_str()), ("n", "i"));
        assert!(start.debug);
        assert_eq!(start.action, "start");
        let delete = parse("--namespace=n --id i -bundle=/b delete").unwrap();
        assert_eq!(
            (delete.bundle.as_str(), delete.action.as_str()),
            ("/b", "delete")
        );
        assert_eq!(parse("").unwrap(), Flags::default());
    }

    #[test]
    fn what_does_not_parse_is_named() {
        let bad = |line| match parse(line) {
            Err(Stop::Bad(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(bad("-nope"), "flag provided but not defined: -nope");
        assert_eq!(bad("-id"), "flag needs an argument: -id");
        assert_eq!(
            bad("-debug=x"),
            "invalid boolean value \"x\" for -debug: parse error"
        );
        assert_eq!(parse("-h"), Err(Stop::Help));
    }

    #[test]
    fn upgrade_takes_flags_on_both_sides_and_nothing_else() {
        let flags = parse("-namespace n upgrade -id=i").unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str()), ("n", "i"));
        assert_eq!(flags.action, UPGRADE);
        assert_eq!(parse("-- upgrade -id i").unwrap().id, "i");
        assert_eq!(parse("upgrade --help"), Err(Stop::Help));
        for (line, why) in [
            ("upgrade web", "upgrade takes no argument: \"web\""),
            ("upgrade -- -id i", "upgrade takes no argument: \"--\""),
            ("upgrade -", "upgrade takes no argument: \"-\""),
            ("upgrade -n x", "flag provided but not defined: -n"),
            ("upgrade -namespace=", "upgrade: -namespace is empty"),
            ("-id= upgrade", "upgrade: -id is empty"),
        ] {
            assert_eq!(parse(line), Err(Stop::Bad(why.into())), "{line}");
        }
        assert!(parse("-id i inspect -json").unwrap().json);
        assert!(parse("--json inspect").unwrap().json);
        assert_eq!(
            parse("-json start"),
            Err(Stop::Bad("flag provided but not defined: -json".into()))
        );
        // Go's flag package stops at the first word.
        assert_eq!(parse("start -id i x").unwrap().id, "");
    }
}
