// SPDX-License-Identifier: Apache-2.0
//! The calls that are the guest's to do: asked of it, and answered without what is only its own.

use crate::container::{GuestContainer, GuestProcess};
use crate::limits::Limits;
use crate::overhead;
use crate::promises::owes_exit;
use crate::runtime::unknown;
use crate::spec::take_what_is_the_hosts;
use crate::wants;
use protos::task::*;
use protos::ttrpc::{Call, Context};
use protos::{Any, Code, Status, any, cgroups};
use serde_json::{Value, json};
use std::pin::pin;
use std::rc::Rc;
use task::{Error, Result};

/// Asks the guest about a process that it has told of.
///
/// # Errors
/// The guest's status, why nobody waits any more, or that the VM is gone.
pub async fn ask<C: Call>(
    container: &GuestContainer,
    process: &Rc<GuestProcess>,
    request: &C,
    context: &Context,
) -> Result<C::Answer> {
    alive(container)?;
    let (vm, method) = (&container.vm, C::METHOD);
    let asked = vm.ask(request, context);
    let answer = while_it_lives(container, method, asked).await;
    let goes = container.init.deleting.get() || process.deleting.get();
    let is_there = process.added.get() && !goes && !process.may_be_gone.get();
    if is_there && matches!(&answer, Err(status) if status.code == Code::NotFound) {
        match method {
            // It has ended, is what that says.
            "Kill" => owes_exit(container, process),
            // Nor need a container have a cgroup.
            "Stats" => {}
            _ => vm.doom.broke_word(&format!(
                "{method} of {}, which is there: not found",
                container.name_of(process)
            )),
        }
    }
    Ok(answer?)
}

/// Waits for an answer of the guest's, for as long as init has not ended: then no call about the
/// container may keep it from being deleted, and the guest owes the answer or its VM.
///
/// # Errors
/// The answer's, or that the VM is gone.
pub async fn while_it_lives<T>(
    container: &GuestContainer,
    what: &str,
    answer: impl Future<Output = std::result::Result<T, Status>>,
) -> std::result::Result<T, Status> {
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        () = container.init.exited() => {}
    }
    let (vm, what) = (
        &container.vm,
        format!("the answer of {what} of {}", container.id),
    );
    let answer = vm.in_time(&what, vm.patience, answer).await;
    answer.unwrap_or_else(|| Err(Status::new(Code::Unavailable, "the VM is gone")))
}

/// # Errors
/// FailedPrecondition if the VM is gone.
pub fn alive(container: &GuestContainer) -> Result<()> {
    if container.vm.is_gone() {
        let text = format!("the VM of container {} is gone", container.id);
        return Err(Error::FailedPrecondition(text));
    }
    Ok(())
}

pub async fn pause(container: &GuestContainer, context: &Context) -> Result<()> {
    let id = container.name.clone();
    ask(container, &container.init, &PauseRequest { id }, context).await
}

pub async fn resume(container: &GuestContainer, context: &Context) -> Result<()> {
    let id = container.name.clone();
    ask(container, &container.init, &ResumeRequest { id }, context).await
}

/// Limits are the guest's to set in the VM, and the host's around it.
pub async fn update(
    container: &GuestContainer,
    mut resources: Value,
    context: &Context,
) -> Result<()> {
    let (pod, id) = (&container.vm.pod, &container.id);
    let limits = Limits::of(&resources).and_then(|update| pod.updated(id, &update));
    let wanted = wants::of(&json!({"linux": {"resources": &resources}}));
    let limits = limits.and_then(|limits| container.vm.shape.admits(&wanted).map(|()| limits));
    let limits = limits.map_err(|why| Status::new(Code::InvalidArgument, why))?;
    take_what_is_the_hosts(&mut resources);
    let value = resources.to_string().into_bytes();
    let type_url = String::new();
    let request = UpdateTaskRequest {
        id: container.name.clone(),
        resources: Some(Any { type_url, value }),
        ..Default::default()
    };
    ask(container, &container.init, &request, context).await?;
    let set = pod.update(id, limits).await;
    set.map_err(|why| unknown(&format!("limits of the VM: {why}")).into())
}

pub async fn resize(
    container: &GuestContainer,
    process: &Rc<GuestProcess>,
    (width, height): (u32, u32),
    context: &Context,
) -> Result<()> {
    let request = ResizePtyRequest {
        id: container.name.clone(),
        exec_id: process.name.clone(),
        width,
        height,
    };
    ask(container, process, &request, context).await
}

/// The guest's figures of the container, and the host's of its VM.
pub async fn stats(container: &GuestContainer, context: &Context) -> Result<Any> {
    let id = container.name.clone();
    let guest = ask(container, &container.init, &StatsRequest { id }, context).await?;
    let metrics = guest
        .stats
        .as_ref()
        .and_then(any::unpack::<cgroups::v2::Metrics>);
    match metrics {
        Some(Ok(metrics)) => {
            let mut stats = any::pack(&metrics);
            stats.value.extend(overhead::of(&container.vm).await);
            Ok(stats)
        }
        _ => Err(unknown("the guest's figures are none of cgroup v2").into()),
    }
}
