//! What takes minutes: `make soak`. Each test prints its figures.

mod load;
mod outage;
mod sweep;
