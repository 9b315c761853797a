// SPDX-License-Identifier: Apache-2.0
//! What takes minutes: `make soak`. Each test prints its figures.

mod load;
mod manager;
mod outage;
mod sweep;
mod vm;
