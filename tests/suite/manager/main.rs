//! `dunnage`, seen as its users see it: through every `ctr`, its own client, and /proc.

mod api;
mod client;
mod docker;
mod exec;
mod flags;
mod frozen;
mod garbage;
mod group;
mod input;
mod interop;
mod journal;
mod limits;
mod logs;
mod metrics;
mod names;
mod neighbours;
mod output;
mod pipes;
mod promises;
mod publish;
mod recovery;
mod restart;
mod shim_death;
mod storm;
mod sweep;
mod units;
