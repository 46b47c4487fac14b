# Every target works from a fresh clone: it installs what it is missing, or says what to install.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PROFILE := proof
CARGO := $(or $(shell command -v cargo 2>/dev/null),$(HOME)/.cargo/bin/cargo)
SETUP := bash tests/setup/need.sh
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
	$(CARGO) clippy --locked --quiet --profile $(PROFILE) --workspace --all-targets --test cluster -- -D warnings
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
	@$(SETUP) build postgres postgres18
	@$(CARGO) test --locked --quiet --profile $(PROFILE) --workspace --test cluster

.PHONY: e2e-ci
e2e-ci: ## The same where its absence is a failure, as CI runs it
	@SIDEGATE_TEST_REQUIRE=cluster $(MAKE) --no-print-directory e2e

.PHONY: generate
generate: ## Write generated files: CRDs
	@$(SETUP) build
	$(CARGO) run --locked --quiet --profile $(PROFILE) -p sidegate-policies --features crd --bin crdgen

.PHONY: interop
interop: ## Test the exchange of tokens with a real Keycloak (fetched from Maven once; it takes a minute to start)
	@$(SETUP) build nextest keycloak
	@SIDEGATE_KEYCLOAK="$${SIDEGATE_CACHE:-$$HOME/.cache/sidegate}/keycloak" $(CARGO) nextest run --locked \
		--cargo-profile $(PROFILE) --workspace --success-output=final -E 'package(sidegate-broker) and test(keycloak)'

.PHONY: bench
bench: ## Measure beside PgBouncer and HAProxy in one run (half an hour; ROWS=pg-simple,bulk ROUNDS=3 runs a part)
	@$(SETUP) build postgres bench
	$(CARGO) build --locked --release -p sidegate -p sidegate-sidecar -p sidegate-injector -p sidegate-bench
	@"$(TARGET)/release/sidegate-bench" $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH))

.PHONY: bench-broker
bench-broker: ## Measure the broker: exchanges, bundles and lockdowns, on a real API server and with 10,000 streams (some minutes)
	@$(MAKE) --no-print-directory bench ROWS=$(or $(ROWS),broker-)

.PHONY: bench-injector
bench-injector: ## Measure the injector: reviews over TLS, what each costs, and 6,000 pods made through it on a real API server
	@$(MAKE) --no-print-directory bench ROWS=$(or $(ROWS),injector-)

.PHONY: fuzz
fuzz: ## Fuzz five parsers on stable Rust (60 s each; SECONDS=... TARGETS=... INPUT=... runs one file)
	@$(SETUP) build
	@CARGO="$(CARGO)" FUZZ_INPUT="$(if $(INPUT),$(abspath $(INPUT)))" bash fuzz/run.sh $(or $(SECONDS),60) $(TARGETS)

.PHONY: audit
audit: ## Check dependencies against published advisories, where the database can be reached
	@$(SETUP) deny
	@cargo-deny --locked check advisories || { echo "audit: the advisory database could not be reached, or an advisory applies (see above)"; exit 1; }
