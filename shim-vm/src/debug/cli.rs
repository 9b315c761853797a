// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-vm-v2 console` and `exec`: an operator's side of the Debug service.

use protos::ttrpc::{CallError, Client};
use protos::vm::{ConsoleRequest, ConsoleResponse, ExecRequest};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const PROGRAM: &str = "containerd-shim-vm-v2";
/// How long one call for lines waits: then it is made again.
const WAIT: Duration = Duration::from_secs(60);
const USAGE: &str = "console [-namespace NAMESPACE] -id ID [-follow]\n\
                     exec [-namespace NAMESPACE] -id ID PROGRAM [ARGUMENT...]";

/// Whose VM it is about, and what else was said.
#[derive(Default)]
struct Asked {
    namespace: String,
    id: String,
    follow: bool,
    rest: Vec<String>,
}

impl Asked {
    /// Flags end at the first word that is none.
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut asked = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix('-') else {
                asked.rest.push((*word).to_owned());
                break;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (name, None),
            };
            let text = match name {
                "namespace" => &mut asked.namespace,
                "id" => &mut asked.id,
                "follow" | "f" if value.is_none() => {
                    asked.follow = true;
                    continue;
                }
                _ => return Err(format!("no such flag: {word}\n{USAGE}")),
            };
            let value = value.or_else(|| words.next().copied());
            *text = value
                .ok_or(format!("{word}: without a value\n{USAGE}"))?
                .to_owned();
        }
        asked.rest.extend(words.map(|word| (*word).to_owned()));
        match asked.id.is_empty() {
            true => Err(format!(
                "-id is missing: that of the VM's first container, or of its pod\n{USAGE}"
            )),
            false => Ok(asked),
        }
    }

    fn socket(&self) -> Result<PathBuf, String> {
        shim::socket_of(PROGRAM, &self.namespace, &self.id).map_err(|e| e.to_string())
    }
}

/// Prints the last lines of a VM's console, and with `-follow` those that come.
///
/// # Errors
/// If there is no such VM.
pub fn console(words: &[&str]) -> Result<ExitCode, String> {
    let asked = Asked::parse(words)?;
    if let Some(word) = asked.rest.first() {
        return Err(format!("console takes no argument: {word:?}"));
    }
    run(async {
        let client = connect(&asked).await?;
        let mut request = ConsoleRequest::default();
        loop {
            let answer = match client.call(&request, Some(WAIT)).await {
                Err(CallError::Status(status)) if status.code == protos::Code::DeadlineExceeded => {
                    continue;
                }
                // With the VM its shim has ended.
                Err(CallError::Closed) if request.wait => return Ok(ExitCode::SUCCESS),
                answer => answer.map_err(|e| e.to_string())?,
            };
            let ConsoleResponse { lines, last, gone } = answer;
            let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            if !gone.is_empty() {
                text += &format!("the VM is gone: {gone}\n");
            }
            print(task::printable(&text).as_bytes())?;
            if !asked.follow || !gone.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            request = ConsoleRequest {
                after: last,
                wait: true,
            };
        }
    })
}

/// Runs a program in a VM's guest, with the standard streams of this process; its status.
///
/// # Errors
/// If it can't run there.
pub fn exec(words: &[&str]) -> Result<ExitCode, String> {
    let asked = Asked::parse(words)?;
    let program = asked.rest.first().ok_or("which program?")?;
    let program = std::path::absolute(program).map_err(|e| format!("{program}: {e}"))?;
    let dir = std::env::temp_dir().join(format!("dunnage-exec-{}", std::process::id()));
    make_private(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let socket = dir.join("socket");
    let listener = UnixListener::bind(&socket).map_err(|e| format!("{}: {e}", dir.display()));
    let request = ExecRequest {
        program: program.to_string_lossy().into_owned(),
        arguments: asked.rest.clone(),
        socket: socket.to_string_lossy().into_owned(),
    };
    let ran = listener.and_then(|listener| {
        run(async {
            let client = connect(&asked).await?;
            let copied = std::thread::spawn(move || copy(&listener));
            let answer = client.call(&request, None).await;
            let answer = answer.map_err(|e| e.to_string())?;
            // All that it has said was said before.
            let _ = copied.join();
            Ok(ExitCode::from(answer.status as u8))
        })
    });
    let _ = std::fs::remove_dir_all(&dir);
    ran
}

fn make_private(dir: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(dir)
}

/// Both ways, until the program has no more to say; what nobody types any more keeps it from nothing.
fn copy(listener: &UnixListener) -> io::Result<()> {
    let (stream, _) = listener.accept()?;
    let input = stream.try_clone()?;
    std::thread::spawn(move || {
        let _ = pass(&mut io::stdin(), &mut &input);
        let _ = input.shutdown(std::net::Shutdown::Write);
    });
    pass(&mut &stream as &mut dyn Read, &mut io::stdout())
}

fn pass(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                to.write_all(&buffer[..n])?;
                to.flush()?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

async fn connect(asked: &Asked) -> Result<Client, String> {
    let socket = asked.socket()?;
    let stream = UnixStream::connect(&socket).and_then(|stream| {
        stream.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(stream)
    });
    let stream = stream.map_err(|e| format!("{}: {e}", socket.display()))?;
    Ok(Client::new(stream))
}

fn run<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default());
    let runtime = runtime.map_err(|e| format!("set up the event loop: {e}"))?;
    runtime.block_on(work)
}

fn print(bytes: &[u8]) -> Result<(), String> {
    let mut stdout = io::stdout();
    let printed = stdout.write_all(bytes).and_then(|()| stdout.flush());
    printed.map_err(|e| format!("stdout: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_end_where_the_program_begins() {
        let asked = Asked::parse(&["-id=a", "--namespace", "n", "/p", "-id", "x"]).unwrap();
        assert_eq!((&*asked.id, &*asked.namespace), ("a", "n"));
        assert_eq!(asked.rest, ["/p", "-id", "x"]);
        assert!(Asked::parse(&["-id", "a", "-follow"]).unwrap().follow);
        for (words, why) in [
            (&["-n", "x"][..], "no such flag: -n"),
            (&["-id"], "-id: without a value"),
            (&["-follow"], "-id is missing"),
        ] {
            let told = Asked::parse(words).err().unwrap();
            assert!(told.starts_with(why), "{told}");
        }
    }
}
