// SPDX-License-Identifier: Apache-2.0
//! `top`: what ps(1) tells of the processes of a container.

use super::client::Client;
use super::output::line;
use super::run::said;
use protos::services::tasks::v1::ListPidsRequest;
use std::collections::HashSet;
use std::io::Read;
use std::process::{Command, Stdio};

/// Prints the lines of the host's `ps` that are the container's, as docker does.
pub async fn top(client: &Client, id: &str, options: &[String]) -> Result<(), String> {
    let request = client.request(ListPidsRequest {
        container_id: id.to_owned(),
    });
    let listed = client.tasks().list_pids(request).await.map_err(said)?;
    let listed = listed.into_inner().processes;
    let pids: HashSet<u32> = listed.iter().map(|it| it.pid).collect();
    let mut ps = Command::new("ps");
    match options {
        [] => ps.arg("-ef"),
        options => ps.args(options),
    };
    ps.stdin(Stdio::null()).stdout(Stdio::piped());
    let failed = |e: std::io::Error| format!("ps, of Debian's procps: {e}");
    let mut output = Vec::new();
    let mut child = ps.spawn().map_err(failed)?;
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_end(&mut output).map_err(failed)?;
    }
    let output = String::from_utf8_lossy(&output);
    chosen(&output, &pids)?.into_iter().try_for_each(line)
}

/// The head and the lines that are of these processes.
fn chosen<'a>(output: &'a str, pids: &HashSet<u32>) -> Result<Vec<&'a str>, String> {
    let mut lines = output.lines();
    let head = lines.next().ok_or("ps told nothing")?;
    let column = head.split_whitespace().position(|name| name == "PID");
    let column =
        column.ok_or_else(|| format!("ps has no column PID with these options: {head}"))?;
    let is_of = |line: &&str| {
        let pid = line.split_whitespace().nth(column);
        pid.and_then(|pid| pid.parse().ok())
            .is_some_and(|pid| pids.contains(&pid))
    };
    Ok(std::iter::once(head).chain(lines.filter(is_of)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_lines() {
        let pids = HashSet::from([7, 70]);
        let output = "UID  PID PPID CMD\nroot   7    1 sh\nroot  17    7 7\nroot  70    7 x 17\n";
        let lines = [
            "UID  PID PPID CMD",
            "root   7    1 sh",
            "root  70    7 x 17",
        ];
        assert_eq!(chosen(output, &pids).unwrap(), lines);
        assert!(chosen("", &pids).is_err());
        assert!(chosen("UID CMD\n", &pids).unwrap_err().contains("PID"));
    }
}
