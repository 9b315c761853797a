// SPDX-License-Identifier: Apache-2.0
//! Nothing: the program virtiofsd logs by this crate, and its library, which we use, does not.
