// SPDX-License-Identifier: Apache-2.0
//! `events`, `exits` and `wait`: what happened, also while nobody looked.

use super::client::{Client, is_lost, lasting};
use super::control;
use super::output::{self, line};
use super::run::said;
use crate::ledger::process_of;
use clap::Args;
use protos::events::TaskExit;
use protos::services::dunnage::v1::{Entry, ReadRequest};
use protos::{Timestamp, any};
use serde_json::json;
use task::ProcessId;
use tonic::Streaming;

#[derive(Debug, Args)]
pub struct Events {
    /// From this number, or time, on
    #[arg(long, value_name = "SEQ|TIME")]
    since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// containerd's filters, such as topic==/tasks/exit (repeatable)
    #[arg(short, long)]
    filter: Vec<String>,
    /// End with the latest
    #[arg(long)]
    no_follow: bool,
}

async fn read(client: &Client, request: &ReadRequest) -> Result<Streaming<Entry>, String> {
    let answer = lasting(async || {
        let request = client.request(request.clone());
        client.journal().read(request).await
    });
    let answer = answer.await.map_err(said)?;
    Ok(answer.into_inner())
}

pub async fn events(client: &Client, args: &Events, as_json: bool) -> Result<(), String> {
    let mut request = ReadRequest {
        since: u64::MAX,
        follow: !args.no_follow,
        filters: args.filter.clone(),
        since_time: None,
    };
    match &args.since {
        None if args.no_follow => request.since = 0,
        None => {}
        Some(text) => match text.parse() {
            Ok(seq) => request.since = seq,
            Err(_) => {
                request.since = 0;
                request.since_time = Some(output::parse_time(text)?);
            }
        },
    }
    let until = args.until.as_deref().map(output::parse_time).transpose()?;
    let order = |time: Timestamp| (time.seconds, time.nanos);
    let began = Some(task::event::now());
    let mut entries = read(client, &request).await?;
    loop {
        let entry = match entries.message().await {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(()),
            // The daemon waits for no slow reader, or went away; the journal has what came meanwhile.
            Err(e) if e.code() == tonic::Code::ResourceExhausted || is_lost(&e) => {
                if request.since == u64::MAX {
                    (request.since, request.since_time) = (0, began);
                }
                entries = read(client, &request).await?;
                continue;
            }
            Err(e) => return Err(said(e)),
        };
        request.since = entry.seq + 1;
        let envelope = entry.envelope.unwrap_or_default();
        if let (Some(until), Some(at)) = (until, envelope.timestamp)
            && order(at) > order(until)
        {
            if !args.no_follow {
                return Ok(());
            }
            // Somebody may have set the clock back: an earlier time may follow.
            continue;
        }
        let event = output::event(entry.seq, &entry.origin, &envelope);
        if as_json {
            line(&event.to_string())?;
        } else {
            let time = output::time(envelope.timestamp);
            line(&format!(
                "{time} {} {} {}",
                envelope.namespace, envelope.topic, event["event"]
            ))?;
        }
    }
}

/// Every exit that the journal has, of one container or of all.
async fn known_exits(
    client: &Client,
    namespace: &str,
    id: Option<&str>,
) -> Result<Vec<(Entry, TaskExit)>, String> {
    let filter = format!("namespace=={namespace},topic==/tasks/exit");
    let filter = id.map_or(filter.clone(), |id| {
        format!("{filter},event.container_id=={id}")
    });
    let request = ReadRequest {
        filters: vec![filter],
        ..Default::default()
    };
    let mut entries = read(client, &request).await?;
    let mut exits = Vec::new();
    while let Some(entry) = entries.message().await.map_err(said)? {
        let event = entry
            .envelope
            .as_ref()
            .and_then(|envelope| envelope.event.as_ref());
        if let Some(Ok(exit)) = event.and_then(any::unpack::<TaskExit>) {
            exits.push((entry, exit));
        }
    }
    Ok(exits)
}

pub async fn exits(
    client: &Client,
    namespace: &str,
    id: Option<&str>,
    as_json: bool,
) -> Result<(), String> {
    let exits = known_exits(client, namespace, id).await?;
    let rows = exits.into_iter().map(|(entry, exit)| {
        let exec = process_of(&exit).exec_id().to_owned();
        json!({
            "seq": entry.seq,
            "id": exit.container_id,
            "exec": exec,
            "pid": exit.pid,
            "status": exit.exit_status,
            "exited_at": output::time(exit.exited_at),
            "origin": entry.origin,
        })
    });
    let keys = ["seq", "id", "exec", "pid", "status", "exited_at", "origin"];
    output::rows(&keys, &rows.collect::<Vec<_>>(), as_json)
}

/// Waits for each, and prints its status; of what is deleted the journal knows it.
pub async fn wait(client: &Client, namespace: &str, ids: &[String]) -> Result<(), String> {
    for id in ids {
        let status = match control::wait(client, id).await {
            Ok(exit) => exit.exit_status,
            Err(e) if e.code() == tonic::Code::NotFound => {
                let exits = known_exits(client, namespace, Some(id)).await?;
                let mut of_init = exits
                    .into_iter()
                    .filter(|(_, exit)| process_of(exit) == ProcessId::Init);
                of_init.next_back().ok_or_else(|| said(e))?.1.exit_status
            }
            Err(e) => return Err(said(e)),
        };
        line(&status.to_string())?;
    }
    Ok(())
}
