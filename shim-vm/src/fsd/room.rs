// SPDX-License-Identifier: Apache-2.0
//! How many files of each superblock the guest may know, or have open.

use crate::fsd::Inode;
use std::collections::HashMap;
use std::io;

/// How many there are, of each superblock, and how many there may be: none has more than three quarters,
/// so that others have room whatever is done in one.
pub struct Room {
    pub most: usize,
    pub all: usize,
    of_each: HashMap<Inode, usize>,
}

impl Room {
    pub fn new(most: usize) -> Self {
        Self {
            most,
            all: 0,
            of_each: HashMap::new(),
        }
    }

    /// # Errors
    /// ENFILE if there is no room for one more.
    pub fn is_for(&self, top: Inode) -> io::Result<()> {
        let own = self.of_each.get(&top).copied().unwrap_or_default();
        if self.all >= self.most || own >= self.most / 4 * 3 {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        Ok(())
    }

    pub fn take(&mut self, top: Inode) {
        self.all += 1;
        *self.of_each.entry(top).or_default() += 1;
    }

    pub fn give_back(&mut self, top: Inode) {
        let Some(own) = self.of_each.get_mut(&top) else {
            return;
        };
        self.all -= 1;
        *own -= 1;
        if *own == 0 {
            self.of_each.remove(&top);
        }
    }
}
