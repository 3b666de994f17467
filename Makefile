# What there is to do. `make test` is what CI runs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help test lint tools run fmt bench book image soak

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

# What is shipped has jemalloc, and a test holds that it gives memory back.
TESTED := --locked --features jemalloc

# The modules of tests/it that run a second time with every stream compressed. A compressor counts among the bytes of the buffer,
# which the test that is left out compares with nothing.
COMPRESSED := resume:: replay:: faults:: streams:: hostile_messages:: starts:: kv:: --skip a_buffer_is_bounded_by_messages

# The tests proper come last, so that cargo's `test result:` lines end the output, and doc tests before them, since there
# may be none. The browser module is tested with the binary that the tests proper have built. A thousand streams need more
# descriptors than the usual soft limit of 1024.
test: lint ## install what the tests need; formatting, clippy, documentation, every test
	npm test --silent --prefix tests/clients
	cargo test $(TESTED) --no-run --lib --bins --tests
	npm test --silent --prefix clients/js
	cargo test $(TESTED) --doc
	COMPRESSED=1 cargo test $(TESTED) --test it -- $(COMPRESSED)
	ulimit -S -n "$$(ulimit -H -n)" || true; cargo test $(TESTED) --no-fail-fast --lib --bins --tests

# Clippy also refuses what the oldest Rust that Cargo.toml names does not have (incompatible_msrv). Advisories are not
# checked here: their database is on a forge, and a test must pass without it. `cargo deny check` does all. The
# documentation is for those who work here: it shows private items, and help texts of the command line have bare URLs.
lint: tools ## formatting, clippy, the crates that may come in, the documentation of the library, shell scripts, workflows, the book
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	.tools/bin/cargo-deny --locked --log-level error check bans licenses sources
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links -A rustdoc::bare_urls" \
	  cargo doc --locked --no-deps --document-private-items --quiet
	shellcheck scripts/* .ci/run deploy/packages/*.sh
	.tools/bin/actionlint
	scripts/book

tools: ## install what the tests need, where it is missing
	@scripts/tools

run: ## the gateway on its embedded broker, http://127.0.0.1:8080
	cargo run --release

# Two builds, so that the gateway under test has its own features and not those that the bench asks of its libraries.
BENCH ?= --json bench.json --docs docs
bench: ## measure against a bare write loop and peers; two hours. A part: make bench BENCH=--quick
	cargo build --profile dist --features jemalloc --locked
	cargo build --profile dist --locked --package topicgate-bench
	"$${CARGO_TARGET_DIR:-target}/dist/topicgate-bench" $(BENCH)

book: ## the documents as a site, in target/book/html
	scripts/book

image: ## build the image, run it and test it; needs docker or podman
	cargo test --locked --test it image:: -- --ignored --nocapture

HOURS ?= 1
soak: ## gateways and brokers that are killed, slowed and reloaded under load. Longer: make soak HOURS=8
	SOAK_HOURS=$(HOURS) cargo test --locked --test it soak:: -- --ignored --nocapture

fmt: ## format the code
	cargo fmt --all
