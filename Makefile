# Everything that a person or the CI does with this repository. `make help` lists it.
#
# All of it shares one target folder, and all but `bench` and `compare` one profile, so that what one target has compiled
# the next one finds.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# A backtrace for each error value makes tests several times slower, and is asked for by none.
unexport RUST_BACKTRACE

CARGO := cargo
# The filters are a workspace of their own: another target, another lock file.
FILTERS := --manifest-path filters/Cargo.toml --target-dir target/guests
WASM := --target wasm32-wasip2
# Of the whole workspace, whatever is wanted of it: by itself a package is compiled with fewer features of its dependencies,
# and half of them would be compiled a second time.
TEST := $(CARGO) test --workspace --locked
# Builds target/debug/lockgate as `test` does.
AS_TESTED := $(TEST) --quiet --no-run

# Outside of the target folder, since it takes minutes to compile: a fresh clone finds it again.
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lockgate/tools
DENY_VERSION := 0.20.2
DENY := $(TOOLS)/bin/cargo-deny

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: setup
setup: ## Install what is missing to build: C compiler, cmake, the target of filters
	@.ci/setup

.PHONY: setup-test
setup-test: ## The same, and what tests need: Chromium with its driver, promtool, openssl, curl, grpcio, h2load
	@.ci/setup test

.PHONY: demo
demo: setup ## Run a gateway with an origin, two filters and a 20 % canary
	@echo "demo: building the filters"
	@$(CARGO) run --quiet --locked -p lockgate-guests -- --library target/library
	@echo "demo: building the gateway (the first time, this takes some minutes)"
	@$(CARGO) build --locked -p lockgate
	@target/debug/lockgate demo --components target/library $(ARGS)

.PHONY: test
test: setup-test ## Run every test: filters, configuration, host, gateway, the page in a browser, documentation
	@echo "test: the filters' workspace, natively"
	@$(CARGO) test $(FILTERS) --workspace --locked
	@echo "test: the gateway's workspace"
	@$(TEST)

.PHONY: conformance
# By Debian's Python, which has Debian's grpcio.
conformance: setup-test ## Call through the gateway with other people's gRPC and HTTP/2, in the clear and by TLS
	@$(AS_TESTED)
	@/usr/bin/python3 -B gateway/conformance/grpc_calls.py target/debug/lockgate
	@/usr/bin/python3 -B gateway/conformance/http2_load.py target/debug/lockgate

.PHONY: lint
lint: fmt-check clippy doc deny ## Run every check that is not a test

.PHONY: fmt
fmt: ## Format everything
	@$(CARGO) fmt --all
	@$(CARGO) fmt --manifest-path filters/Cargo.toml --all
	@$(CARGO) fmt --manifest-path benches/proxy-wasm-filter/Cargo.toml
	@$(CARGO) fmt --manifest-path filters/toolchains/rust/Cargo.toml

.PHONY: fmt-check
fmt-check: ## Check the format
	@$(CARGO) fmt --all --check
	@$(CARGO) fmt --manifest-path filters/Cargo.toml --all --check
	@$(CARGO) fmt --manifest-path benches/proxy-wasm-filter/Cargo.toml --check
	@$(CARGO) fmt --manifest-path filters/toolchains/rust/Cargo.toml --check

.PHONY: clippy
clippy: setup ## Run clippy; a warning is an error
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@$(CARGO) clippy $(FILTERS) $(WASM) --workspace --locked -- -D warnings
	@$(CARGO) clippy $(FILTERS) --workspace --all-targets --locked -- -D warnings

.PHONY: doc
doc: setup ## Build the documentation; a warning is an error
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(FILTERS) -p lockgate-filter --no-deps --locked

.PHONY: deny
deny: ## Check licences, sources, banned crates and, where it can be fetched, the advisory database
	@$(CARGO) install cargo-deny --version $(DENY_VERSION) --locked --debug --quiet --root $(TOOLS)
	@checks="bans licenses sources"; \
	if timeout 20 git ls-remote --quiet https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1; then \
	    checks="advisories $$checks"; \
	else \
	    echo "deny: the advisory database is out of reach, so advisories are NOT checked"; \
	fi; \
	for manifest in Cargo.toml filters/Cargo.toml; do \
	    echo "deny: $$manifest: $$checks"; \
	    $(DENY) --manifest-path $$manifest --config deny.toml --locked check --hide-inclusion-graph $$checks; \
	done

.PHONY: guests
guests: setup ## Build every filter and test fixture, into target/filters
	@$(CARGO) run --quiet --locked -p lockgate-guests -- target/filters

.PHONY: examples
examples: setup-test ## Check the example configurations and those in deploy, components and all
	@$(CARGO) run --quiet --locked -p lockgate-guests -- target/examples/filters
	@mkdir -p target/examples/{functions,pages,public,dist/assets,tls}
	@echo '<h1>{status}</h1>' > target/examples/pages/error.html
	@echo '<h1>closed</h1>' > target/examples/pages/closed.html
	@cp target/examples/filters/hello.wasm target/examples/functions/greeter.wasm
	@cp target/examples/filters/hello.wasm target/examples/functions/greeter-2.wasm
	@for name in example.com example.org clients; do \
	    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$$name" \
	        -addext "subjectAltName=DNS:$$name" -keyout "target/examples/tls/$$name.key" \
	        -out "target/examples/tls/$$name.pem" 2>/dev/null; \
	done
	@cp config/examples/*.yaml target/examples/
	@mkdir -p target/examples/endpoints
	@echo '["127.0.0.1:3001"]' | tee target/examples/endpoints/app.yaml > target/examples/endpoints/legacy.yaml
	@for file in deploy/lockgate.yaml deploy/compose/config/lockgate.yaml; do \
	    sed -e 's#/usr/share/lockgate/filters#filters#' -e 's#/var/\(lib\|cache\)/lockgate#var#' \
	        "$$file" > "target/examples/$$(dirname "$$file" | tr / -).yaml"; \
	done
	@$(AS_TESTED)
	@for example in target/examples/*.yaml; do \
	    echo "examples: $$example"; \
	    LOCKGATE_LOG=warn LOCKGATE_ADMIN_TOKEN=example target/debug/lockgate check "$$example"; \
	done

.PHONY: deploy-check
deploy-check: ## Lint what is in deploy: YAML, Kubernetes manifests, compose file, Containerfile, the unit of systemd
	@.ci/deploy-check $(TOOLS)

.PHONY: generated
generated: ## Write the JSON Schema and the reference page anew
	@$(CARGO) run --quiet --locked -p lockgate-config --example generate

.PHONY: generated-check
generated-check: generated ## Check that schema and reference are those of the types
	@git diff --exit-code --stat -- config/lockgate.schema.json config/REFERENCE.md \
	    || { echo "error: generated files were not current" >&2; echo "hint: commit what \`make generated\` wrote" >&2; exit 1; }

.PHONY: bench
bench: setup ## Run the micro-benchmarks, in the release profile
	@$(CARGO) bench --locked -p lockgate-benches

.PHONY: bench-smoke
bench-smoke: setup ## Run each micro-benchmark once, unoptimised
	@$(TEST) --bench micro

.PHONY: soak
soak: setup ## Replace a filter every second under load; SECONDS=60
	@$(CARGO) run --quiet --locked -p lockgate-guests -- --library target/library
	@$(CARGO) build --locked -p lockgate
	@benches/soak.sh $(or $(SECONDS),60)

.PHONY: limits
limits: setup ## Measure restarts with a warm cache, an idle gateway's memory, and 2,000 swaps under load
	@$(CARGO) run --quiet --locked -p lockgate-guests -- --library target/library
	@$(CARGO) build --release --locked -p lockgate
	@benches/limits.py

.PHONY: idle
idle: setup ## Hold 10,000 idle connections, and see what they cost; CONNECTIONS=10000
	@$(CARGO) build --locked -p lockgate
	@benches/idle.sh $(or $(CONNECTIONS),10000)

.PHONY: toolchains
toolchains: setup ## Compare one function from three toolchains, with each other and with WASMTIME; fetches from crates.io, npm and PyPI
	@$(CARGO) build --locked -p lockgate
	@filters/toolchains/compare.sh

.PHONY: compare
compare: setup ## Compare with other gateways under load; ARGS="--help" tells more
	@$(CARGO) run --release --locked -p lockgate-benches --bin compare -- $(ARGS)

.PHONY: simulate
simulate: ## Judge simulated canaries, beside what others use; about half an hour
	@$(CARGO) run --release --locked -p lockgate-simulate -- --out benches/simulate $(ARGS)

.PHONY: ci
ci: ## Do what the CI does
	@.ci/run
