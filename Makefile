# SPDX-License-Identifier: Apache-2.0
# What there is to do here; `make help` lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

NAME := containerd-shim-runc-v2
DIST := target/dist/$(NAME)
VM_NAME := containerd-shim-vm-v2
VM_DIST := target/dist/$(VM_NAME)
MANAGER := target/dist/dunnage
IMAGE := target/dist/dunnage-image
GUEST := target/dist/guest
PEERS := $(abspath $(or $(DUNNAGE_PEERS),target/peers))
# What tests/setup.sh had to unpack because apt could not install it.
export PATH := $(PEERS)/bin:$(PATH)
# 3: something can't be had; what needs it says so itself.
SETUP = tests/setup.sh $(1) || [ $$? = 3 ]
GO_SHIM ?= $(shell sed -n 's/^go-shim [^ ]* //p' $(PEERS)/versions 2>/dev/null)/$(NAME)
# Test programs run with /tmp and /run in memory, and one test more than there are processors: they wait.
# Those that wait most, which is all without a VM, have two for each.
export RUST_TEST_THREADS ?= $(shell echo $$((1 + $$(nproc))))
WAITING := $(shell echo $$((2 * $$(nproc))))
TEST = CARGO_TARGET_$(shell echo $(HOST) | tr a-z- A-Z_)_RUNNER=$(CURDIR)/tests/in-memory.sh $(CARGO) test --locked
# The package of the black-box suite: it takes the shim to test from SHIM and
# the containerds, runtimes and images to test it with from PEERS.
SUITE ?= tests
# And that of VMs from SHIM_VM, with this configuration.
VMS = SHIM_VM=$(abspath $(VM_DIST)) DUNNAGE_VM_CONFIG=$(PEERS)/vm.toml

# One file without libraries or relocations.  With --target these flags are for
# the shipped code only, in a directory of its own: neither build scripts nor
# what `make test` compiles are ever rebuilt because of them.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
STATIC := -C target-feature=+crt-static -C relocation-model=static
# As long in every clone, however many commits that has.
REVISION = $(shell git rev-parse --short=10 HEAD 2>/dev/null)
BUILT = $(or $(CARGO_TARGET_DIR),target)/$(HOST)/release
# The static agent that goes into the guest image as its /init.
AGENT ?= $(BUILT)/dunnage-guest

PLACES := bin share/man/man1 share/man/man8 share/bash-completion/completions share/zsh/site-functions \
	share/fish/vendor_completions.d share/dunnage
UNITS ?= $(PREFIX)/lib/systemd/system

.PHONY: help
help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

.PHONY: setup
setup: ## get what building and testing need (Debian 12 or 13, as root)
	@$(call SETUP)

.PHONY: build
build: ## make the shims and dunnage in target/dist, static release builds
	$(call BUILD,$(TOGETHER))
	$(call BUILD,image)
	$(call PUT,$(NAME))
	$(call PUT,$(VM_NAME))
	$(call PUT,dunnage)
	$(call PUT,dunnage-image)
	$(call PUT,dunnage-node)

# No directory of whoever builds is in a program; what is named last counts.
CARGO_DIR = $(or $(CARGO_HOME),$(HOME)/.cargo)
REMAP = $(foreach dir,$(CARGO_DIR)=/cargo $(CURDIR)=/dunnage $(abspath $(or $(CARGO_TARGET_DIR),target))=/dunnage/target,\
	--remap-path-prefix=$(dir))

# BUILD <packages> [flags]; PUT <program>: into target/dist, if it is another. Packages that are built
# together have the features of their crates that any of them needs: what gets images is built alone.
TOGETHER := shim-runc shim-vm guest manager deploy
BUILD = DUNNAGE_REVISION=$(REVISION) RUSTFLAGS='$(strip $(RUSTFLAGS) $(STATIC) $(REMAP))' \
	$(CARGO) build --release --locked --target $(HOST) $(addprefix -p ,$(1)) $(2)
PUT = @mkdir -p target/dist && { cmp -s $(BUILT)/$(1) target/dist/$(1) || install -m755 $(BUILT)/$(1) target/dist/$(1); }

# What of the suite is tried with the other OCI runtimes in `make test`.
SELECTED := checkpoint:: direct:: failures:: golden:: oom:: stats:: task:: terminal::
RUNC_1_3 = RUNTIME=$(PEERS)/runc-1.3/bin/runc
CRUN = RUNTIME=$(PEERS)/crun/bin/crun
WITH_RUNTIME = SHIM=$(abspath $(DIST)) PEERS=$(PEERS) $(TEST) --workspace --test shim

# And all of it with containers in VMs; each of the two tests at a time emulates a processor.
WITH_VMS = SHIM=$(abspath $(VM_DIST)) $(VMS) PEERS=$(PEERS) $(TEST) --workspace --test shim -- --test-threads=2

# The VM suite, for another QEMU; and what of it is tried with the newest in `make test`.
VM_SUITE = SHIM=$(abspath $(DIST)) SHIM_VM=$(abspath $(VM_DIST)) MANAGER=$(abspath $(MANAGER)) PEERS=$(PEERS) \
	$(TEST) --workspace --test vm
VM_SELECTED := check:: checkpoint:: containerd:: death:: files:: life:: network:: streams:: templates::

# All suites but that of VMs and the long ones, and the tests inside the crates.
SUITES := containerd cri ledger machine manager release shim tidy

.PHONY: test
test: setup build guest ## run all tests, as root
	SHIM=$(abspath $(DIST)) $(VMS) MANAGER=$(abspath $(MANAGER)) PEERS=$(PEERS) RUST_TEST_THREADS=$(WAITING) \
		$(TEST) --workspace --no-fail-fast --lib --bins $(addprefix --test ,$(SUITES))
	DUNNAGE_VM_CONFIG=$(PEERS)/vm.toml $(VM_SUITE)
	$(RUNC_1_3) $(WITH_RUNTIME) -- $(SELECTED)
	$(CRUN) tests/cgroup-v1.sh env $(WITH_RUNTIME) -- $(SELECTED)
	$(WITH_VMS)
	PEERS=$(PEERS) tests/with-qemu.sh newest env $(VM_SUITE) -- $(VM_SELECTED)

.PHONY: test-build
test-build: ## build all that `make test` runs, but for what it tests
	$(TEST) --workspace --no-run

.PHONY: test-vm
test-vm: setup build guest ## run the whole suite of the shim with containers in VMs
	$(WITH_VMS)

.PHONY: test-runtimes
test-runtimes: setup build ## run the whole suite of the shim with runc 1.3, and with crun
	$(RUNC_1_3) $(WITH_RUNTIME)
	$(CRUN) tests/cgroup-v1.sh env $(WITH_RUNTIME)

.PHONY: test-go
test-go: setup ## run the black-box suite against containerd's Go shim
	SHIM=$(GO_SHIM) MANAGER=$(abspath $(MANAGER)) PEERS=$(PEERS) $(TEST) -p $(SUITE) \
		$(addprefix --test ,shim containerd tidy cri manager ledger)

$(BUILT)/dunnage-guest:
	$(MAKE) build

.PHONY: guest
guest: $(AGENT) ## make the VM shim's guest image, target/dist/guest, out of Debian's packages
	AGENT=$(AGENT) shim-vm/guest/image.sh distro
	test ! -e target/guest/kernel/RELEASE || AGENT=$(AGENT) shim-vm/guest/image.sh tuned

.PHONY: kernel
kernel: ## build a kernel for it that boots in half the time; takes minutes, then make guest
	shim-vm/guest/kernel.sh

.PHONY: soak
soak: setup build guest ## sweeps and load that take minutes, as root; they print their figures
	SHIM=$(abspath $(DIST)) $(VMS) MANAGER=$(abspath $(MANAGER)) PEERS=$(PEERS) $(TEST) -p $(SUITE) --features soak \
		--test soak -- --nocapture --test-threads=1 --skip two_hundred_restores
	PEERS=$(PEERS) tests/with-qemu.sh newest env SHIM=$(abspath $(DIST)) SHIM_VM=$(abspath $(VM_DIST)) PEERS=$(PEERS) \
		$(TEST) -p $(SUITE) --features soak --test soak two_hundred_restores -- --nocapture
	for version in 7.2 10.0 11; do PEERS=$(PEERS) tests/with-qemu.sh $$version env $(VM_SUITE) || exit; done
	TEMPLATES=1 PEERS=$(PEERS) tests/with-qemu.sh newest env $(VM_SUITE)
	tests/roots.sh
	SWEEP=full SHIM=$(abspath $(DIST)) MANAGER=$(abspath $(MANAGER)) PEERS=$(PEERS) \
		$(TEST) -p $(SUITE) --test manager sweep -- --nocapture

RUST_SHIM := $(PEERS)/rust-shim
RUST_SHIM_VERSION := 0.2.0

# The other Rust shim, to be measured beside ours.
$(RUST_SHIM)/version:
	$(CARGO) install containerd-runc-shim --version $(RUST_SHIM_VERSION) --locked --root $(RUST_SHIM)
	@echo $(RUST_SHIM_VERSION) >$@

.PHONY: bench
bench: setup build guest $(RUST_SHIM)/version ## measure side by side, as root; ONLY="latency idle" for some of it, QUICK=1 to see
	PEERS=$(PEERS) tests/with-qemu.sh newest tests/cgroup-v1.sh env SHIM=$(abspath $(DIST)) \
		SHIM_VM=$(abspath $(VM_DIST)) MANAGER=$(abspath $(MANAGER)) PEERS=$(PEERS) \
		ONLY='$(ONLY)' QUICK='$(QUICK)' $(CARGO) bench --locked -p $(SUITE) --bench bench

.PHONY: lint
lint: lint-rust lint-crates lint-shell ## check the format, clippy's and shellcheck's opinion, and the crates that are used

# What needs nothing but Rust.
.PHONY: lint-rust
lint-rust:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings

.PHONY: lint-crates
lint-crates:
	tests/deny.sh bans licenses sources

.PHONY: lint-shell
lint-shell:
	shellcheck .ci/run $$(git ls-files '*.sh' 'release/debian/*/p*' 'release/*/dunnage-select')

.PHONY: protos
protos: ## generate the code that speaks the interfaces anew, after a change of a .proto file
	$(CARGO) check --locked -p protos -p manager -p tests --features generate

.PHONY: fuzz
fuzz: ## give each fuzz target RUNS inputs (20000), with the stable compiler
	tests/fuzz.sh

.PHONY: demo
demo: ## show the shim at work, then dunnage, then a VM; each is built when its turn comes
	@$(call SETUP,build demo)
	$(call BUILD,shim-runc)
	$(call PUT,$(NAME))
	@tests/demo.sh
	$(call BUILD,manager)
	$(call BUILD,image)
	$(call PUT,dunnage)
	$(call PUT,dunnage-image)
	@tests/demo-manager.sh
	@$(call SETUP,build demo vm)
	$(call BUILD,shim-vm guest)
	$(call PUT,$(VM_NAME))
	$(MAKE) guest
	@DUNNAGE_VM_CONFIG=$(PEERS)/vm.toml tests/demo-vm.sh

# Builds only if nothing is built yet, so that `sudo make install` needs no Rust.
$(DIST) $(VM_DIST) $(MANAGER) $(IMAGE):
	$(MAKE) build
$(GUEST)/distro/guest.toml:
	$(MAKE) setup build guest

.PHONY: install
install: $(DIST) $(VM_DIST) $(MANAGER) $(IMAGE) $(GUEST)/distro/guest.toml ## install below $(DESTDIR)$(PREFIX), units and a configuration too
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,$(PLACES)) $(DESTDIR)$(UNITS) $(DESTDIR)/etc/dunnage/net.d
	install -m755 $(DIST) $(VM_DIST) $(MANAGER) $(IMAGE) $(DESTDIR)$(PREFIX)/bin
	for flavour in $(notdir $(wildcard $(GUEST)/*)); do \
		install -d $(DESTDIR)$(PREFIX)/lib/dunnage/guest/$$flavour && \
		install -m644 $(GUEST)/$$flavour/* $(DESTDIR)$(PREFIX)/lib/dunnage/guest/$$flavour || exit; done
	$(MANAGER) man >$(DESTDIR)$(PREFIX)/share/man/man1/dunnage.1
	for command in $$($(MANAGER) help | sed -n '/^Commands:/,/^$$/s/^  \([a-z]\+\) .*/\1/p'); do \
		$(MANAGER) man $$command >$(DESTDIR)$(PREFIX)/share/man/man1/dunnage-$$command.1 || exit; done
	install -m644 shim-runc/etc/*.8 shim-vm/etc/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	$(MANAGER) completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/dunnage
	$(MANAGER) completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_dunnage
	$(MANAGER) completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/dunnage.fish
	install -m644 manager/etc/grafana.json manager/etc/grafana-shims.json $(DESTDIR)$(PREFIX)/share/dunnage
	sed 's|/usr/local|$(PREFIX)|' manager/etc/dunnage.service >$(DESTDIR)$(UNITS)/dunnage.service
	sed 's|/usr/local|$(PREFIX)|' shim-vm/etc/dunnage-pool.service >$(DESTDIR)$(UNITS)/dunnage-pool.service
	install -m644 manager/etc/dunnage.socket $(DESTDIR)$(UNITS)
	for file in manager/etc/config.toml shim-vm/etc/shim-vm.toml; do \
		test -e $(DESTDIR)/etc/dunnage/$${file##*/} || install -m644 $$file $(DESTDIR)/etc/dunnage || exit; done
	test -e $(DESTDIR)/etc/dunnage/net.d/dunnage.conflist || \
		install -m644 manager/etc/dunnage.conflist $(DESTDIR)/etc/dunnage/net.d

.PHONY: uninstall
uninstall: ## take it away from there, unless containers in VMs run; the configuration stays
	$(if $(DESTDIR),rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(NAME) $(VM_NAME)),release/uninstall.sh $(PREFIX)/bin)
	rm -rf $(DESTDIR)$(PREFIX)/lib/dunnage
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,bin/dunnage bin/dunnage-image share/man/man1/dunnage.1 \
		share/bash-completion/completions/dunnage share/zsh/site-functions/_dunnage \
		share/fish/vendor_completions.d/dunnage.fish share/dunnage/grafana.json share/dunnage/grafana-shims.json)
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/dunnage-*.1
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/man/man8/,$(NAME).8 $(VM_NAME).8)
	rm -f $(addprefix $(DESTDIR)$(UNITS)/,dunnage.service dunnage.socket dunnage-pool.service)

.PHONY: dist
dist: setup build guest ## make a release in target/release: archive, checksums, SBOM
	release/dist.sh

.PHONY: deb
deb: setup build guest ## make Debian packages in target/release
	release/deb.sh

.PHONY: rpm
rpm: setup build guest ## make RPM packages in target/release
	release/rpm.sh

.PHONY: deploy
deploy: setup build guest ## make the image that puts the shims on nodes of Kubernetes, in target/release
	release/image.sh

.PHONY: reproducible
reproducible: ## build a release in two directories and compare them; ONLY="NAMES" for those programs and target/dist
	ONLY='$(ONLY)' tests/reproducible.sh

# Programs of the suite, with the features that they have when all are built.
.PHONY: build-only
build-only:
	$(call BUILD,$(TOGETHER),$(addprefix --bin ,$(ONLY)))

.PHONY: clean
clean: ## remove all that was built and unpacked
	$(CARGO) clean
	rm -rf target
