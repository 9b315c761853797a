#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# deny.sh <check...>: `cargo deny check` of what deny.toml says: bans, licenses,
# sources; and advisories, whose database must be fetched.
#
# A cargo-deny in PATH is taken, whatever its version; else one is built, once,
# in target/tools.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2
tools=$PWD/target/tools
export PATH=$tools/bin:$PATH
if ! command -v cargo-deny >/dev/null; then
    printf 'deny: building cargo-deny %s\n' "$version"
    CARGO_PROFILE_DEV_DEBUG=false cargo install --quiet --debug --locked --root "$tools" --target-dir "$tools/target" --version "$version" cargo-deny
    rm -rf "$tools/target"
fi
# Two versions of one crate are no fault (deny.toml), and a long list.
cargo deny --locked check --hide-inclusion-graph --allow duplicate "$@"
