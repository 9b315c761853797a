// SPDX-License-Identifier: Apache-2.0
//! Execs without an OCI runtime (`DUNNAGE_DIRECT_EXEC=1`) are what the runtime under test makes of them: two
//! hundred of them by both, in two containers of the same spec, and all that a process can see of itself
//! is compared, and every error.

use harness::otlp;
use harness::stdio::{Fifos, Stdio};
use harness::{Bundle, Shim, Test, differs, proc, vm_differs, wait};
use protos::ttrpc::CallError;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

const SPECS: usize = 200;

/// All that a shell can see of itself. What it is told by number (its pid, inodes, identities of mounts) is
/// told in relation to others.
const PROBE: &str = r#"
me=/proc/$$
echo "== id $(id)"; echo "== umask $(umask)"; echo "== pwd $(pwd)"
echo '== status'; grep -v -E '^(Tgid|Pid|NStgid|NSpid|NSpgid|NSsid|Ngid|State|SigQ|Vm|Rss|Hugetlb|voluntary|nonvoluntary|FDSize)' $me/status
set -- $(cat $me/stat)
[ "$5" = $$ ] && echo '== leads its group'; [ "$6" = $$ ] && echo '== leads its session'
echo "== parent $4 tty $7 $8 priority ${18} ${19} ${40} ${41}"
for file in limits cgroup oom_score_adj timerslack_ns loginuid sessionid coredump_filter setgroups personality mountinfo attr/current
do echo "== $file"; cat $me/$file 2>&1; done
echo '== ns'; for ns in $me/ns/*; do echo "${ns##*/} $(readlink $ns)"; done
echo "== root $(readlink $me/root) cwd $(readlink $me/cwd) exe $(readlink $me/exe)"
echo '== fds'; for fd in 0 1 2; do stat -L -c "$fd %F %u %g %a" $me/fd/$fd 2>&1 | sed "s,$me,,"; done; ls $me/fd
echo; echo '== env'; tr '\0' '\n' <$me/environ; echo '== args'; tr '\0' ' ' <$me/cmdline
echo; echo '== keys'; grep -o '_ses.*' /proc/keys | sort -u
"#;

/// A number that is as good as any, the same every time.
struct Dice(u64);

impl Dice {
    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        &all[(self.0 >> 33) as usize % all.len()]
    }
}

/// An exec as somebody may want it: mostly as it should be.
fn any_process(test: &Test, dice: &mut Dice) -> Value {
    let mut process = harness::bundle::process(test, &["sh", "-c", PROBE]);
    let all = process["capabilities"]["bounding"].clone();
    let mut set = |pointer: &str, usual: &[Value], unusual: &[Value]| {
        // One of eight is what somebody gets wrong, or what nobody wants.
        let values = if *dice.one_of(&[true, false, false, false, false, false, false, false]) {
            unusual
        } else {
            usual
        };
        if let Some(value) = (!values.is_empty()).then(|| dice.one_of(values)) {
            let (above, key) = pointer.rsplit_once('/').expect("a pointer");
            process.pointer_mut(above).expect("an object")[key] = value.clone();
        }
    };
    let uids = [json!(0), json!(1000), json!(65534), json!(33)];
    set("/user/uid", &uids, &[json!(77_777), json!(u32::MAX)]);
    set("/user/gid", &[json!(0), json!(5), json!(1000)], &[]);
    set(
        "/user/additionalGids",
        &[json!([]), json!([1, 2, 3000])],
        &[],
    );
    set("/user/umask", &[], &[json!(63)]);
    set("/noNewPrivileges", &[json!(true), json!(false)], &[]);
    let some = [json!([]), json!(["CAP_CHOWN"]), all.clone()];
    for name in ["bounding", "effective", "permitted", "inheritable"] {
        let usual = std::slice::from_ref(&all);
        set(&format!("/capabilities/{name}"), usual, &some);
    }
    set("/capabilities/ambient", &[], &some);
    set(
        "/cwd",
        &[json!("/"), json!("/bin"), json!("/proc")],
        &[json!("/nonexistent")],
    );
    // Soft and hard are the same: Go before 1.19.9 may raise a soft limit.
    let nofile = json!([{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 200}]);
    let two = json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, {"type": "RLIMIT_NPROC", "soft": 90, "hard": 99}]);
    let high = json!([{"type": "RLIMIT_NICE", "soft": 40, "hard": 50}]);
    set("/rlimits", &[json!([]), nofile, two], &[high, json!(null)]);
    set("/oomScoreAdj", &[], &[json!(0), json!(100)]);
    let plain = json!(["PATH=/nonexistent:/bin:/sbin", "A=1=2", "B="]);
    let home = json!(["PATH=/bin", "HOME=/h"]);
    let odd = [
        json!(["PATH=/bin", "A=1", "A=2"]),
        json!(["PATH=bin:/bin"]),
        json!(["A=1"]),
        json!(["PATH=/bin", "HOME="]),
    ];
    set("/env", &[plain, home], &odd);
    let named = |name: &str| json!([name, "-c", PROBE]);
    let quick = [
        json!(["sh", "-c", "exit 7"]),
        json!(["sh", "-c", "kill -9 $$"]),
    ];
    let usual = [
        named("sh"),
        named("sh"),
        named("/bin/sh"),
        quick[0].clone(),
        quick[1].clone(),
    ];
    let wrong = ["not-there", "/bin", "/proc/version", "./sh"].map(|name| json!([name]));
    set("/args", &usual, &wrong);
    process
}

/// One of the two.
struct Side {
    bundle: Bundle,
    shim: Shim,
    spans: PathBuf,
}

/// A shell that starts something beside itself has it ignore these.
fn ignore_nothing() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for ignored in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: the default action runs no code of ours.
        unsafe { signal(ignored, SigHandler::SigDfl) }.expect("signal");
    }
}

impl Side {
    async fn new(test: &Test, id: &str, direct: bool) -> Self {
        ignore_nothing();
        let spans = test.dir().join(format!("{id}.spans"));
        let bundle = test.bundle(id);
        let bundle = bundle.set("/hostname", json!("box")).build();
        let place = format!("file://{}", spans.display());
        let start = bundle.start().env("DUNNAGE_TRACE", &place);
        let start = match direct {
            true => start.env("DUNNAGE_DIRECT_EXEC", "1"),
            false => start,
        };
        let shim = start.shim().await;
        shim.create(bundle.create()).await.expect("Create");
        shim.start(id, "").await.expect("Start");
        Self {
            bundle,
            shim,
            spans,
        }
    }

    /// What came of it, without what tells the two apart.
    async fn outcome(&self, test: &Test, n: usize, process: &Value) -> String {
        let id = &self.bundle.id;
        let exec = format!("e{n}");
        let fifos = Fifos::new(test.dir().join(format!("{id}-{exec}")));
        let (mut stdout, mut stderr) = fifos.readers();
        let request = self.bundle.exec_spec(&exec, process).output(&fifos);
        let added = self.shim.exec(request).await;
        let said = match (added, self.shim.start(id, &exec).await) {
            (Ok(()), Ok(_)) => {
                let ended = self.shim.wait(id, &exec).await.expect("Wait");
                let (out, err) = tokio::join!(stdout.text(), stderr.text());
                format!("status {}\n{out}{err}", ended.exit_status)
            }
            (_, Err(CallError::Status(status))) => status.message,
            other => panic!("{other:?}"),
        };
        self.shim.delete(id, &exec).await.expect("Delete");
        let mut said = said;
        let init = self.shim.init(id).await;
        let own: [(String, &str); 4] = [
            (format!("{}-{id}", test.namespace()), "CGROUP"),
            (format!("_ses.{id}"), "KEYRING"),
            (self.bundle.path.display().to_string(), "BUNDLE"),
            (format!("exec {exec}"), "EXEC"),
        ];
        let namespaces = fs::read_dir(format!("/proc/{init}/ns")).expect("namespaces");
        let of_init = namespaces.flatten().filter_map(|ns| {
            let name = fs::read_link(ns.path()).ok()?;
            let name = name.to_string_lossy().into_owned();
            let digits: String = name.chars().filter(char::is_ascii_digit).collect();
            Some((digits, "OF-INIT"))
        });
        for (text, word) in own.into_iter().chain(of_init) {
            said = said.replace(&text, word);
        }
        of_mounts(&said)
    }

    /// How many execs were made, and how many asked for, in which way.
    fn counted(&self, name: &str) -> usize {
        let spans = otlp::read(&fs::read_to_string(&self.spans).expect("spans"));
        let made = spans
            .iter()
            .filter(|span| span.name == name && span.failed.is_none());
        made.count()
    }
}

/// The lines that only one of the two has.
fn lines_of_one(direct: &str, by_runtime: &str) -> String {
    let only = |of: &str, not_of: &str, sign: &str| -> String {
        let lines = of
            .lines()
            .filter(|line| !not_of.lines().any(|it| it == *line));
        lines.map(|line| format!("{sign} {line}\n")).collect()
    };
    only(direct, by_runtime, "+") + &only(by_runtime, direct, "-")
}

/// Without the identities of mounts and devices in lines of mountinfo, and without the keyrings of others.
fn of_mounts(text: &str) -> String {
    let line = |line: &str| match line.contains(" - ") {
        true => line.split(' ').skip(3).collect::<Vec<_>>().join(" "),
        false => line.to_owned(),
    };
    let own = text.lines().filter(|line| !line.starts_with("_ses."));
    own.map(|it| line(it) + "\n").collect()
}

#[test]
fn an_exec_without_the_runtime_is_what_the_runtime_makes_of_it() {
    if differs("direct") || vm_differs("guests-runtime") {
        return;
    }
    harness::run_alone(async |test| {
        let ours = Side::new(test, "twin1", true).await;
        let runtimes = Side::new(test, "twin2", false).await;
        let mut dice = Dice(22);
        let (mut failures, mut differences) = (0, String::new());
        for n in 0..SPECS {
            let process = any_process(test, &mut dice);
            let (direct, by_runtime) = tokio::join!(
                ours.outcome(test, n, &process),
                runtimes.outcome(test, n, &process)
            );
            if direct != by_runtime {
                differences += &format!("{n}: {process}\n{}", lines_of_one(&direct, &by_runtime));
            }
            failures += usize::from(!direct.starts_with("status "));
        }
        assert_eq!(differences, "");
        assert!((10..SPECS - 50).contains(&failures), "{failures} failures");
        let direct = ours.counted("direct exec");
        let asked = ours.counted("runtime exec");
        let all = runtimes.counted("runtime exec");
        assert_eq!(direct + asked, all, "each is made once");
        assert!(direct > 40, "{direct} of {all} were made directly");
    });
}

/// What is not known to be the same is not made so; init, too, has a say.
#[test]
fn what_is_not_the_same_is_the_runtimes() {
    if differs("direct") || vm_differs("guests-runtime") {
        return;
    }
    harness::run(async |test| {
        let side = Side::new(test, "twin1", true).await;
        let terminal = Fifos::new(test.dir().join("terminal"));
        let mut reader = terminal.stdout.reader();
        let request = side.bundle.exec("t", &["tty"]).terminal(&terminal);
        side.shim.exec(request).await.unwrap();
        side.shim.start("twin1", "t").await.unwrap();
        assert!(reader.text().await.starts_with("/dev/pts/"));
        assert_eq!(side.counted("direct exec"), 0);
        side.shim.run(side.bundle.exec("d", &["true"])).await;
        wait::until("the span", || match side.counted("direct exec") {
            1 => Ok(()),
            n => Err(format!("{n} spans")),
        })
        .await;
        // A runtime's wait for cgroups may go on beside the loop, and holds a file meanwhile.
        side.shim.one_thread().await;
        let before = side.shim.footprint();
        let cgroup = format!("/sys/fs/cgroup/freezer/{}-twin1", test.namespace());
        let state = PathBuf::from(cgroup).join("freezer.state");
        if state.exists() && harness::peers::runtime_name() == "runc" {
            // By somebody else: the shim has not been asked to.
            fs::write(&state, "FROZEN").unwrap();
            let request = side.bundle.exec("p", &["true"]);
            side.shim.exec(request).await.unwrap();
            let refused = harness::refused(side.shim.start("twin1", "p").await);
            fs::write(&state, "THAWED").unwrap();
            assert!(refused.message.contains("paused"), "{}", refused.message);
            side.shim.delete("twin1", "p").await.unwrap();
        }
        assert_eq!(side.counted("direct exec"), 1);
        side.shim.one_thread().await;
        assert_eq!(side.shim.footprint().fds, before.fds);
        assert!(proc::alive(side.shim.init("twin1").await));
    });
}
