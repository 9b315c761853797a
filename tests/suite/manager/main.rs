//! `dunnage`, seen as its users see it: through every `ctr`, its own client, and /proc.

mod api;
mod client;
mod docker;
mod journal;
mod names;
mod recovery;
mod shim_death;
mod storm;
mod sweep;
