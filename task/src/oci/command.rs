// SPDX-License-Identifier: Apache-2.0
//! Running one command of the OCI runtime to its end, without blocking the loop.

use super::failure::Failure;
use crate::command::Command;
use crate::reaper::{Ended, Reaper};
use nix::sys::signal::Signal;
use protos::ttrpc::Context;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

/// What a command's stdout and stderr said, together; at most this many bytes are kept.
const MAX_OUTPUT: usize = 64 << 10;
/// How long a command may keep its turn: one that takes longer waits for something, perhaps for
/// ever, and must not keep others from running.
const TURN: Duration = Duration::from_millis(100);

/// The three standard streams of a command.
pub enum Streams {
    /// Stdin is empty; what it prints is kept for the caller.
    Captured,
    /// Stdin gives these bytes; what it prints is kept for the caller.
    Fed(Vec<u8>),
    /// The container's own: an OCI runtime hands them on to the process it makes.
    Given([OwnedFd; 3]),
}

/// Our ends of a command's streams, and what it has said.
#[derive(Default)]
struct Talk {
    input: Option<(pipe::Sender, Vec<u8>)>,
    output: Option<pipe::Receiver>,
    said: Vec<u8>,
}

impl Talk {
    /// Gives `command` its streams.
    fn with(command: &mut Command, streams: Streams) -> io::Result<Self> {
        let mut talk = Self::default();
        let command = match streams {
            Streams::Given([stdin, stdout, stderr]) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
                return Ok(talk);
            }
            Streams::Captured => command.null([libc::STDIN_FILENO]),
            Streams::Fed(input) => {
                let (read, write) = io::pipe()?;
                talk.input = Some((pipe::Sender::from_owned_fd(write.into())?, input));
                command.stdin(read)
            }
        };
        let (read, write) = io::pipe()?;
        command.stdout(write.try_clone()?).stderr(write);
        talk.output = Some(pipe::Receiver::from_owned_fd(read.into())?);
        Ok(talk)
    }

    /// Writes and reads until the pipes are closed.
    async fn go_on(&mut self) {
        let input = self.input.take();
        let write = async {
            if let Some((mut sender, input)) = input {
                // A command that does not read its input says why itself.
                let _ = sender.write_all(&input).await;
            }
        };
        let read = async {
            if let Some(output) = &mut self.output {
                read_up_to(output, &mut self.said).await;
            }
        };
        tokio::join!(write, read);
    }

    /// All that a command which has ended has said.
    fn end(mut self) -> Vec<u8> {
        if let Some(output) = &self.output {
            read_what_is_there(output, &mut self.said);
        }
        self.said
    }
}

/// Runs `command` until it ends, and gives what it printed.
///
/// When the caller gives up, the command is killed, and this returns once it is gone.
///
/// # Errors
/// If it can't be executed, ends with anything but 0, or was killed because the caller gave up.
pub async fn run(
    reaper: &Reaper,
    mut command: Command,
    streams: Streams,
    context: &Context,
) -> Result<Vec<u8>, Failure> {
    let program = command.program().to_string_lossy().into_owned();
    let not_spawned = |source: io::Error| Failure::not_spawned(&program, &source);
    command.die_with_parent();
    let mut talk = Talk::with(&mut command, streams).map_err(not_spawned)?;
    let turn = {
        let _waiting = context.waits_for(|| format!("a turn to run {program}"), 0);
        tokio::select! {
            biased;
            turn = reaper.turns.next(&program) => turn,
            why = context.cancelled() => return Err(Failure::given_up(why)),
        }
    };
    let (mut child, not_executed) = reaper.spawn(&command).map_err(not_spawned)?;
    let name = || program.rsplit('/').next().unwrap_or_default().to_owned();
    let _waiting = context.waits_for(name, child.pid);
    // Closes our copies of what the child inherited, so that ends of file can be seen.
    drop(command);

    let end_turn = async {
        tokio::time::sleep(TURN).await;
        drop(turn);
    };
    let meanwhile = async {
        tokio::join!(talk.go_on(), end_turn);
        // The pipes closing is not the end; the exit is.
        std::future::pending().await
    };
    let Ended { status, used } = tokio::select! {
        ended = child.end() => ended,
        never = meanwhile => never,
        why = context.cancelled() => {
            child.kill(Signal::SIGKILL);
            child.exit().await;
            return Err(Failure::given_up(why));
        }
    };
    if let Some(e) = not_executed.error() {
        return Err(not_spawned(e));
    }
    reaper.turns.learn(&program, used);
    let said = talk.end();
    if status.success() {
        Ok(said)
    } else {
        Err(Failure::ended(&program, status, &said))
    }
}

/// Reads to the end of the pipe; what is over [`MAX_OUTPUT`] is read and forgotten, so that a
/// talkative command never blocks (issue 4434 of containerd).
async fn read_up_to(reader: &mut pipe::Receiver, output: &mut Vec<u8>) {
    while reader.readable().await.is_ok() {
        match read_chunk(output, |chunk| reader.try_read(chunk)) {
            Ok(1..) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// Reads what the command left in the pipe. A child of its own may hold the pipe open, so this
/// does not wait for the end of it. The pipe itself is asked: the loop may have heard of the exit
/// and not yet of the output before it.
fn read_what_is_there(reader: &pipe::Receiver, output: &mut Vec<u8>) {
    let read = |chunk: &mut [u8]| Ok(nix::unistd::read(reader.as_fd(), chunk)?);
    while let Ok(1..) = read_chunk(output, read) {}
}

/// In a function of its own: across an await the chunk would make every call of the Task API, for
/// as long as it lasts, as large as itself.
fn read_chunk(
    output: &mut Vec<u8>,
    read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut chunk = [0; 4096];
    let n = read(&mut chunk)?;
    keep(output, &chunk[..n]);
    Ok(n)
}

fn keep(output: &mut Vec<u8>, chunk: &[u8]) {
    let room = MAX_OUTPUT.saturating_sub(output.len()).min(chunk.len());
    output.extend_from_slice(&chunk[..room]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::runtime::Builder;

    /// The exit of a command and its last words come at once, and the loop may see the exit first.
    #[test]
    fn last_words_are_read_although_the_loop_has_not_heard_of_them() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (read, mut write) = io::pipe().unwrap();
            let reader = pipe::Receiver::from_owned_fd(read.into()).unwrap();
            write.write_all(b"last words").unwrap();
            let mut output = Vec::new();
            read_what_is_there(&reader, &mut output);
            assert_eq!(output, b"last words");
        });
    }
}
