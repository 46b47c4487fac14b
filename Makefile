# Every target works from a fresh clone: it installs what it is missing, or says what to install.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PROFILE := proof
CARGO := $(or $(shell command -v cargo 2>/dev/null),$(HOME)/.cargo/bin/cargo)
SETUP := bash tests/setup/need.sh
NODE = SIDEGATE_TEST_NODE=1 $(CARGO) test --locked --quiet --profile $(PROFILE) --workspace --test node --
IMAGES = CARGO="$(CARGO)" bash images/build.sh --profile $(PROFILE)
# Our images, where a node can be. Called by itself, and not by make: lines that name it run even where make is only asked what
# it would do.
NODE_IMAGES = if $(NODE) suits 2>/dev/null; then $(IMAGES); fi
TOOLS := $(or $(SIDEGATE_CACHE),$(HOME)/.cache/sidegate)/bin
export PATH := $(TOOLS):$(HOME)/.cargo/bin:$(PATH)
export CARGO_TERM_COLOR ?= auto
# Where cargo builds: asked in the recipes that run what was built.
TARGET = $$($(CARGO) metadata --no-deps --format-version 1 --offline | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')

.PHONY: help
help: ## Show this list
	@echo "Sidegate: agents reach databases without ever holding a credential."
	@echo
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Watch it work: psql without a password, masks, a refusal, an approval, a kill switch, replay, verify
	@$(SETUP) build postgres
	@echo "Building sidegate (the first time takes some minutes)..."
	@$(CARGO) build --locked --profile $(PROFILE) -p sidegate
	@SIDEGATE="$(TARGET)/$(PROFILE)/sidegate" bash examples/demo/run.sh

.PHONY: test
test: ## Run every test that belongs to a change (real PostgreSQL 15 and 18 included)
	@$(SETUP) build postgres postgres18 nextest drivers
	@$(CARGO) nextest run --locked --cargo-profile $(PROFILE) --workspace --no-fail-fast
	@$(CARGO) test --locked --quiet --profile $(PROFILE) --doc --workspace

.PHONY: lint
lint: ## Format, clippy, size gate, dependency rules, generated files
	@$(SETUP) build deny
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --locked --quiet --profile $(PROFILE) --workspace --all-targets -- -D warnings
	@# All targets are those that `cargo test` runs: these two run by themselves, and a name beside --all-targets counts for nothing.
	$(CARGO) clippy --locked --quiet --profile $(PROFILE) --workspace --test cluster --test node -- -D warnings
	python3 tests/lint/house.py
	@# It reads the manifests of every platform's crates, and fetches none itself.
	$(CARGO) fetch --locked --quiet
	cargo-deny --offline --locked check --hide-inclusion-graph bans licenses sources
	$(CARGO) run --locked --quiet --profile $(PROFILE) -p sidegate-policies --features crd --bin crdgen -- --check

.PHONY: cluster-binaries
cluster-binaries: ## Build etcd, Kubernetes, helm, kwok and kubeconform for the test cluster (needs Go 1.26; once, some 15 min)
	@bash tests/cluster/build.sh

.PHONY: e2e
e2e: ## Test on a real Kubernetes API server (after make cluster-binaries; says what it skips without them)
	@$(SETUP) build postgres postgres18 monitoring
	@# A test of the command line's own brings its binary, with the features that everything here is built with.
	@$(CARGO) test --no-run --locked --quiet --profile $(PROFILE) --workspace --test explain
	@$(CARGO) test --locked --quiet --profile $(PROFILE) --workspace --test cluster $(if $(SKIP),-- $(SKIP:%=--skip %))

.PHONY: e2e-ci
e2e-ci: ## As CI runs it: the same where its absence is a failure, and the core of `make node` where there can be a node
	@# Keys of months take minutes to come into use, even at the shortest, and a restore starts a control plane twice: they are
	@# left to `make e2e`, so that this stays within twelve minutes.
	@SIDEGATE_TEST_REQUIRE=cluster $(MAKE) --no-print-directory e2e SKIP="rings:: restored::"
	@# Where parts of a node cannot be had, the suite says so, and that it was skipped.
	@$(SETUP) node || true
	@$(NODE_IMAGES)
	@$(NODE) --skip numbers::how_much_later --skip several::

.PHONY: node
node: ## Test injected pods on a real node: containerd, kubelet, our images (root; says what it skips without)
	@$(SETUP) build postgres postgres18 node
	@$(NODE_IMAGES)
	@$(NODE) $(FILTER)

# What `make cluster` stands on; only a machine that can have a node needs it.
.PHONY: node-images
node-images:
	@$(SETUP) build postgres postgres18 node
	@$(IMAGES)

.PHONY: cluster
cluster: cluster-binaries node-images ## Bring up a single-node cluster with Sidegate, an agent and a database, and say how to use it (root)
	@$(NODE) up

.PHONY: cluster-down
cluster-down: ## Remove that cluster, and show that nothing of it is left
	@$(NODE) down

.PHONY: images
images: ## Build our static programs as container images (OCI archives) with their lists of parts; prints sizes and digests
	@$(SETUP) build
	@CARGO="$(CARGO)" bash images/build.sh --profile release

.PHONY: generate
generate: ## Write generated files: CRDs
	@$(SETUP) build
	$(CARGO) run --locked --quiet --profile $(PROFILE) -p sidegate-policies --features crd --bin crdgen

.PHONY: interop
interop: ## Test exchanges with a real Keycloak, oidc-provider, MinIO, Vault and moto (fetched or built once; MinIO and Vault take Go and minutes)
	@$(SETUP) build postgres18 nextest oidc keycloak moto minio vault
	@cache="$${SIDEGATE_CACHE:-$$HOME/.cache/sidegate}"; there=3; \
		export SIDEGATE_KEYCLOAK="$$cache/keycloak" SIDEGATE_MOTO="$$cache/clients/moto/bin/moto_server"; \
		for part in minio vault; do \
			if [ -x "$$cache/bin/$$part" ]; then export SIDEGATE_$${part^^}="$$cache/bin/$$part"; there=$$((there + 1)); \
			else echo "interop: SKIPPED: $$part (Go could not build it)"; fi; \
		done; \
		echo "interop: $$there of 5 parts are there"; \
		$(CARGO) nextest run --locked --cargo-profile $(PROFILE) --workspace --success-output=final \
		-E '(package(sidegate-broker) or package(sidegate-tests)) and (test(keycloak) or test(stock_provider) or test(moto) or test(minio) or test(real_vault))'

.PHONY: release
release: ## Build the shipped programs, static and laid out by what a short training run does (says so where it cannot; from nothing an hour and more on two cores)
	@$(SETUP) build postgres
	@CARGO="$(CARGO)" bash bench/release.sh

.PHONY: bench
bench: ## Measure beside PgBouncer and HAProxy in one run (half an hour after `make release`'s hour; ROWS=pg-simple,bulk ROUNDS=3 runs a part)
	@$(SETUP) build postgres bench
	@CARGO="$(CARGO)" bash bench/release.sh
	@# By itself: what it needs besides would change what everything else is built with.
	@$(CARGO) build --locked --release -p sidegate-bench
	@"$(TARGET)/release/sidegate-bench" $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH))

.PHONY: bench-broker
bench-broker: ## Measure the broker: exchanges, bundles and lockdowns, on a real API server and with 10,000 streams (some minutes)
	@$(MAKE) --no-print-directory bench ROWS=$(or $(ROWS),broker-)

.PHONY: bench-injector
bench-injector: ## Measure the injector: reviews over TLS, what each costs, and 6,000 pods made through it on a real API server
	@$(MAKE) --no-print-directory bench ROWS=$(or $(ROWS),injector-)

.PHONY: limits
limits: ## Print what the injector stands, by the tests' build (CI does; bench-injector measures what is shipped)
	@$(CARGO) build --locked --quiet --profile $(PROFILE) --workspace --bin sidegate-bench --bin sidegate-injector
	@echo "By the tests' build, in which nothing of ours is optimised: to be compared with itself, and not with the bars."
	@"$(TARGET)/$(PROFILE)/sidegate-bench" --rows injector-reviews --rounds 1 --seconds 3 --print

.PHONY: fuzz
fuzz: ## Fuzz five parsers on stable Rust (60 s each; SECONDS=... TARGETS=... INPUT=... runs one file)
	@$(SETUP) build
	@CARGO="$(CARGO)" FUZZ_INPUT="$(if $(INPUT),$(abspath $(INPUT)))" bash fuzz/run.sh $(or $(SECONDS),60) $(TARGETS)

.PHONY: audit
audit: ## Check dependencies against published advisories, where the database can be reached
	@$(SETUP) deny
	@cargo-deny --locked check advisories || { echo "audit: the advisory database could not be reached, or an advisory applies (see above)"; exit 1; }
