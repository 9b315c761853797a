//! `dunnage`, seen as its users see it: through every `ctr`, its own client, and /proc.

mod api;
mod client;
mod docker;
mod group;
mod journal;
mod limits;
mod metrics;
mod names;
mod promises;
mod publish;
mod recovery;
mod restart;
mod shim_death;
mod storm;
mod sweep;
mod units;
