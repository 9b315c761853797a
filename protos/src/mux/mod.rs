// SPDX-License-Identifier: Apache-2.0
//! Many streams over one byte pipe, as a VM's serial port is: what the VM shim and its guest
//! agent speak.
//!
//! [`frame`] is what goes over the pipe, [`streams`] what it means, [`Link`] the pipe itself in an
//! event loop, and [`Stream`] one of its streams there.
//!
//! ```text
//! 0        4      5        8
//! | stream | kind | length | payload ...      numbers are big-endian
//! ```
//!
//! | kind | payload |
//! |---|---|
//! | 1 open | none: the opener's next number |
//! | 2 data | up to 16 KiB |
//! | 3 end | none: no more data this way, the other goes on |
//! | 4 reset | none: the stream is gone, both ways |
//! | 5 credit | u32: so many more bytes may be sent |
//! | 6 again | none: a host that has taken over goes on with the stream ([`session`]) |
//!
//! Stream 0 is there from the start. The others are opened by one side, the host. Each way of a
//! stream starts with [`WINDOW`] bytes of credit, so that one whose reader sleeps holds up no
//! other.
//!
//! The host believes nothing: a stream that a guest opens, a number that the host has not given out,
//! data beyond the credit, and a frame after the last are a [`Violation`] each.

mod frame;
mod link;
mod session;
mod stream;
mod streams;

pub use frame::{Violation, WINDOW};
pub use link::Link;
pub use session::MARK;
pub use stream::Stream;
pub use streams::{Gone, Moved, Streams};

/// The most that an agent answers to one call, and the longest text of an error in it, in bytes. What
/// decodes may take thirty times its bytes.
pub const MAX_ANSWER: usize = 128 << 10;
/// The most that one of its notices has, in bytes.
pub const MAX_NOTICE: usize = 4 << 10;
