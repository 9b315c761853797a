// SPDX-License-Identifier: Apache-2.0
//! The process that makes an exec's: a program of its own, so that nothing of the shim's memory ever is in
//! a container. It joins the container, forks, and says who its fork is: a child of the shim's.
//!
//! ```text
//!  shim ─ fork, execute ─> helper: cgroups, namespaces ─ fork ─> user, capabilities ... ─> program
//!   ^                        │                                     │ its parent is the shim
//!   └──── pid, or why not ───┴──────────── why not ────────────────┘
//! ```

use super::request::{Made, Request};
use crate::sys::exec;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{self, AccessFlags, Gid, Uid};
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::process::ExitCode;
use std::time::SystemTime;

/// What the program is called as, to be this.
pub const NAME: &str = "dunnage-exec";
/// Where it has its request, the container's init, and the pipe for its answer.
pub const REQUEST: i32 = 3;
pub const INIT: i32 = 4;
pub const ANSWER: i32 = 5;
/// What comes after them is not its.
const OTHERS: u32 = 6;
/// The most of an `/etc/passwd` that is read.
const PASSWD: u64 = 1 << 20;

type Result<T> = std::result::Result<T, String>;

/// Adds what was being done.
fn at<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
    move |e| format!("{what}: {e}")
}

/// All of it. The answer is a [`Made`] as JSON and status 0, or why there is none, and another status.
pub fn main() -> ExitCode {
    let answer = match crate::sys::adopt(ANSWER) {
        Ok(answer) => answer,
        Err(_) => return ExitCode::FAILURE,
    };
    let mut answer = File::from(answer);
    match run().and_then(|made| serde_json::to_vec(&made).map_err(at("answer"))) {
        Ok(made) if answer.write_all(&made).is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(why) => {
            let _ = answer.write_all(why.as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Made> {
    // What is here is nobody's business that is in the container already (CVE-2016-9962).
    prctl::set_dumpable(false).map_err(at("dumpable"))?;
    exec::close_from(OTHERS).map_err(at("close_range"))?;
    let request = crate::sys::adopt(REQUEST).map_err(at("request"))?;
    let mut json = Vec::new();
    File::from(request)
        .read_to_end(&mut json)
        .map_err(at("request"))?;
    let request: Request = serde_json::from_slice(&json).map_err(at("request"))?;
    let init = crate::sys::adopt(INIT).map_err(at("init"))?;
    if let Some(adj) = request.oom_score_adj {
        badness(adj).map_err(at("oom_score_adj"))?;
    }
    for file in &request.cgroups {
        fs::write(file, "0").map_err(at(&file.display().to_string()))?;
    }
    let namespaces = CloneFlags::from_bits_retain(request.namespaces);
    setns(init, namespaces).map_err(at("setns"))?;
    fork(&request)
}

fn badness(adj: i64) -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let adj = adj.to_string();
    match crate::proc::text(FILE)?.trim() == adj {
        true => Ok(()),
        false => fs::write(FILE, adj),
    }
}

/// Makes the process, and waits until it executes its program.
fn fork(request: &Request) -> Result<Made> {
    let (mut why_not, say) = unistd::pipe2(OFlag::O_CLOEXEC)
        .map(|(read, write)| (File::from(read), File::from(write)))
        .map_err(at("pipe"))?;
    // Before it can have ended: which exit of its pid is its own is told by that.
    let made = SystemTime::now();
    match exec::fork_sibling().map_err(at("fork"))? {
        Some(pid) => {
            drop(say);
            let mut why = Vec::new();
            why_not.read_to_end(&mut why).map_err(at("pipe"))?;
            match why.is_empty() {
                true => Ok(Made::new(pid, made)),
                false => Err(String::from_utf8_lossy(&why).into_owned()),
            }
        }
        None => {
            drop(why_not);
            let mut say = say;
            let Err(why) = become_it(request);
            let _ = say.write_all(why.as_bytes());
            exec::end_now(1)
        }
    }
}

/// The new process: what runc does between its fork and the program, in its order.
fn become_it(request: &Request) -> Result<std::convert::Infallible> {
    unistd::setsid().map_err(at("setsid"))?;
    if let Some(name) = &request.keyring {
        let name = CString::new(name.as_str()).map_err(at("keyring"))?;
        match exec::join_session_keyring(&name) {
            Err(Errno::ENOSYS) => {}
            joined => joined.map_err(at("keyring"))?,
        }
    }
    for limit in &request.limits {
        exec::set_limit(limit.resource, limit.soft, limit.hard).map_err(at("rlimit"))?;
    }
    let mut env = request.env.clone();
    if !env.iter().any(|one| one.starts_with("HOME=")) {
        env.push(format!("HOME={}", home(request.uid)?));
    }
    if request.no_new_privs {
        prctl::set_no_new_privs().map_err(at("no_new_privs"))?;
    }
    unistd::chdir(request.cwd.as_str()).map_err(at("cwd"))?;
    exec::bound_capabilities(request.capabilities.bounding).map_err(at("bounding set"))?;
    prctl::set_keepcaps(true).map_err(at("keepcaps"))?;
    become_user(request)?;
    prctl::set_keepcaps(false).map_err(at("keepcaps"))?;
    let sets = &request.capabilities;
    exec::set_capabilities(sets.effective, sets.permitted, sets.inheritable)
        .map_err(at("capabilities"))?;
    exec::set_ambient_capabilities(sets.ambient).map_err(at("ambient set"))?;
    // A directory that is not of this root is another's (CVE-2024-21626).
    let here = unistd::getcwd().map_err(at("getcwd"))?;
    if !here.is_absolute() {
        return Err(format!("cwd: {} is outside", here.display()));
    }
    exec::forget_handlers().map_err(at("signals"))?;
    let program = find(&request.args[0], &env)?;
    let texts = |list: &[String]| {
        let list: std::result::Result<Vec<_>, _> =
            list.iter().map(|s| CString::new(s.as_str())).collect();
        list.map_err(at("NUL"))
    };
    let (args, env) = (texts(&request.args)?, texts(&env)?);
    unistd::execve(&program, &args, &env).map_err(at("execve"))
}

fn become_user(request: &Request) -> Result<()> {
    own_streams(request)?;
    let groups: Vec<Gid> = request
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    unistd::setgroups(&groups).map_err(at("setgroups"))?;
    unistd::setgid(Gid::from_raw(request.gid)).map_err(at("setgid"))?;
    unistd::setuid(Uid::from_raw(request.uid)).map_err(at("setuid"))
}

/// The streams become the user's, so that it can open them again by their names in /proc.
fn own_streams(request: &Request) -> Result<()> {
    let null = fs::metadata("/dev/null").map_err(at("/dev/null"))?;
    if !null.file_type().is_char_device() {
        return Err("/dev/null is no device".into());
    }
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let stat = fstat(stream).map_err(at("fstat"))?;
        let gid = request.streams_have_group.then_some(request.gid);
        let is_theirs = stat.st_uid == request.uid && gid.is_none_or(|gid| stat.st_gid == gid);
        // runc looks for the null device, crun does not.
        let is_null = stat.st_rdev == null.rdev() && !request.streams_have_group;
        if is_null || is_theirs {
            continue;
        }
        let user = Some(Uid::from_raw(request.uid));
        match unistd::fchown(stream, user, gid.map(Gid::from_raw)) {
            Ok(()) | Err(Errno::EINVAL | Errno::EPERM | Errno::EROFS) => {}
            Err(e) => return Err(format!("fchown: {e}")),
        }
    }
    Ok(())
}

/// The home of a user by the container's `/etc/passwd` (passwd(5)); `/` without one.
fn home(uid: u32) -> Result<String> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = match options.open("/etc/passwd") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok("/".into()),
        file => file.map_err(at("/etc/passwd"))?,
    };
    let kind = SFlag::from_bits_truncate(fstat(file.as_fd()).map_err(at("/etc/passwd"))?.st_mode);
    if kind & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err("/etc/passwd: no file".into());
    }
    let mut text = Vec::new();
    let read = file.take(PASSWD + 1).read_to_end(&mut text);
    if read.map_err(at("/etc/passwd"))? as u64 > PASSWD {
        return Err("/etc/passwd: too long to be read here".into());
    }
    let text = String::from_utf8(text).map_err(at("/etc/passwd"))?;
    home_of(&text, uid).ok_or_else(|| "/etc/passwd: a line that is none".into())
}

/// The same, of this text; `None` if a line is not as it should be, and who knows what of it.
fn home_of(text: &str, uid: u32) -> Option<String> {
    for line in text.lines().filter(|line| !line.is_empty()) {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, id, gid, _, home, _] = fields[..] else {
            return None;
        };
        let plain = |text: &str| text.trim() == text && !text.is_empty();
        let numbers = id.parse::<u32>().ok().zip(gid.parse::<u32>().ok());
        let (id, _) = numbers.filter(|_| plain(name) && !name.starts_with(['+', '-', '#']))?;
        if id == uid {
            return plain(home).then(|| home.to_owned());
        }
    }
    Some("/".into())
}

/// The file that `program` means: itself, or the first of PATH that may be executed.
fn find(program: &str, env: &[String]) -> Result<CString> {
    let text = |path: String| CString::new(path).map_err(at("NUL"));
    if program.contains('/') {
        return text(program.into());
    }
    let path = env.iter().find_map(|one| one.strip_prefix("PATH="));
    let path = path.ok_or("there is no PATH")?;
    for dir in path.split(':') {
        if !dir.starts_with('/') {
            return Err(format!("PATH: {dir:?} is not absolute"));
        }
        let file = text(format!("{dir}/{program}"))?;
        if may_execute(&file) {
            return Ok(file);
        }
    }
    Err(format!("{program:?} is not in PATH"))
}

fn may_execute(file: &CStr) -> bool {
    let here = nix::fcntl::AT_FDCWD;
    let may = unistd::faccessat(here, file, AccessFlags::X_OK, AtFlags::AT_EACCESS);
    let is_file =
        || nix::sys::stat::stat(file).is_ok_and(|it| it.st_mode & libc::S_IFMT == libc::S_IFREG);
    may.is_ok() && is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_those_of_the_first_line_of_a_user() {
        let text =
            "root:x:0:0:root:/root:/bin/sh\n\nweb:x:33:33::/var/www:/bin/false\nw2:x:33:1::/x:/y\n";
        assert_eq!(home_of(text, 0).as_deref(), Some("/root"));
        assert_eq!(home_of(text, 33).as_deref(), Some("/var/www"));
        assert_eq!(home_of(text, 7).as_deref(), Some("/"));
        for bad in [
            "+:::::",
            "a:x:b:0::/h:",
            "a:x:7:0::/h",
            "a:x:7:0:::/s",
            " a:x:7:0::/h:/s",
            "#a:x:7:0::/h:/s",
        ] {
            assert_eq!(home_of(bad, 7), None, "{bad}");
        }
    }

    #[test]
    fn a_program_is_looked_for_in_absolute_directories() {
        let env = |path: &str| vec![format!("PATH={path}")];
        assert_eq!(
            find("sh", &env("/nonexistent:/bin")).unwrap().to_str(),
            Ok("/bin/sh")
        );
        assert_eq!(find("./x", &[]).unwrap().to_str(), Ok("./x"));
        for path in ["", "bin", "/nonexistent:", "/etc"] {
            assert!(find("sh", &env(path)).is_err(), "{path}");
        }
        assert!(find("sh", &[]).is_err());
    }
}
