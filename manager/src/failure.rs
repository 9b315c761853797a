// SPDX-License-Identifier: Apache-2.0
//! How a request fails: the status codes that containerd's clients branch on.

use protos::ttrpc::CallError;
use protos::{Code, Status};

/// A code and a text; clients of containerd look for the code, and some for the text's end.
pub type Failure = Status;

pub fn invalid(text: impl std::fmt::Display) -> Failure {
    Status::new(Code::InvalidArgument, format!("{text}: invalid argument"))
}

pub fn not_found(text: impl std::fmt::Display) -> Failure {
    Status::new(Code::NotFound, format!("{text}: not found"))
}

pub fn exists(text: impl std::fmt::Display) -> Failure {
    Status::new(Code::AlreadyExists, format!("{text}: already exists"))
}

pub fn precondition(text: impl std::fmt::Display) -> Failure {
    Status::new(
        Code::FailedPrecondition,
        format!("{text}: failed precondition"),
    )
}

pub fn unavailable(text: impl std::fmt::Display) -> Failure {
    Status::new(Code::Unavailable, format!("{text}: unavailable"))
}

/// A bound of bytes or numbers is reached: see docs/limits.md.
pub fn exhausted(text: impl std::fmt::Display) -> Failure {
    Status::new(
        Code::ResourceExhausted,
        format!("{text}: resource exhausted"),
    )
}

pub fn unimplemented(text: impl std::fmt::Display) -> Failure {
    Status::new(Code::Unimplemented, format!("{text}: not implemented"))
}

pub fn unknown(text: impl std::fmt::Display) -> Failure {
    Status::new(Code::Unknown, text.to_string())
}

/// What a shim's connection failed with, as the caller sees it.
pub fn from_shim(error: CallError) -> Failure {
    match error {
        CallError::Status(status) => status,
        CallError::Closed => Status::new(Code::Unavailable, "ttrpc: closed: unavailable"),
    }
}

/// An I/O error of our own, with what was tried.
pub fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Failure {
    move |e| unknown(format!("{what}: {e}"))
}
