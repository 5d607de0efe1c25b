# vbnet's verbs. `make` lists them. Nothing needs to be installed first but Python >= 3.11, cargo and make:
# the first verb that needs the environment creates .venv and builds the native module into it.

PYTHON ?=
# `fast` builds in a minute and is what tests use; PROFILE=release squeezes the last per cent for benchmarks.
PROFILE ?= fast
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1
# Programs start in three quarters of the time when compiled modules are kept, wherever that was switched off.
export PYTHONDONTWRITEBYTECODE :=

BASE := $(VENV)/.base
DEV := $(VENV)/.dev
BUILT := $(VENV)/.built-$(PROFILE)
RUST_SOURCES := $(shell find rust/core rust/pybind -type f \( -name '*.rs' -o -name '*.toml' \) -not -path '*/target/*') Cargo.toml $(wildcard Cargo.lock)
MYPY_FILES := $(wildcard tests tools examples bench dashboards)

# How long `make fuzz` has for each of its targets that are guided by coverage.
FUZZ_SECONDS ?= 60

# A whole run is shared out to workers; a narrowed one stays in one process, where -s and --pdb work.
SHARED_OUT := $(if $(ARGS),,-n auto --dist worksteal)

# Rust's tests run optimised, as far as is quickly compiled, with overflow checks and debug assertions on.
CARGO_TEST := CARGO_PROFILE_TEST_OPT_LEVEL=1 CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo test --workspace --exclude vbnet-native

SLOW_TEST := VBNET_HYPOTHESIS_PROFILE=slow $(BIN)/python -m pytest --durations=12 --durations-min=10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup build test test-rust test-python test-slow test-all lint format types loom fuzz bench docs dashboards demo ci clean

help: ## List these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEV) ## Create .venv with the development tools (needs Python >= 3.11)

build: $(BUILT) ## Build the native module and install vbnet into .venv (PROFILE=fast|release)

test: test-rust test-python ## Run the tests that take under two minutes

test-rust: ## Run the Rust tests alone
	$(CARGO_TEST)

test-python: $(DEV) $(BUILT) ## Run the Python tests alone, without the slow ones (ARGS="-k name" narrows)
	@tools/system-packages.sh
	$(BIN)/python -m pytest -m "not slow" $(SHARED_OUT) $(ARGS)

test-slow: $(DEV) $(BUILT) ## Run only the slow tests: wheel, long stress, many guests, virtual machines
	@tools/system-packages.sh
	@tools/vm-programs.sh
ifeq ($(ARGS),)
	$(SLOW_TEST) -m "slow and not alone" -n "$$(nproc)" --dist worksteal
	$(SLOW_TEST) -m "slow and alone"
else
	$(SLOW_TEST) -m slow $(ARGS)
endif

test-all: test test-slow ## Run every test, the slow ones too

lint: $(DEV) ## Check style and import layers: ruff, rustfmt, clippy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cargo fmt --all --check
	cargo fmt --manifest-path rust/fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/lint-imports

format: $(DEV) ## Rewrite Python and Rust sources in the house format
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	cargo fmt --all
	cargo fmt --manifest-path rust/fuzz/Cargo.toml

types: $(DEV) $(BUILT) ## Check types: mypy strict, and the stub of vbnet._native against the binary
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases $(MYPY_FILES)
	$(BIN)/stubtest --allowlist tools/stubtest.allow --ignore-unused-allowlist vbnet._native

loom: ## Check every interleaving of ring and signal, then that each weakened ordering is noticed
	tools/loom.sh
	tools/loom.sh mutants

fuzz: $(DEV) $(BUILT) ## Search longer for breaking input: guided by coverage, and with many cases (FUZZ_SECONDS=60 a target)
	FUZZ_SECONDS=$(FUZZ_SECONDS) tools/fuzz.sh
	PROPTEST_CASES=20000 $(CARGO_TEST) prop
	VBNET_HYPOTHESIS_PROFILE=slow $(BIN)/python -m pytest $(wildcard tests/property)

bench: ## Measure vbnet beside its baselines (builds with PROFILE=release)
	$(MAKE) build PROFILE=release
	$(BIN)/vbnet bench all

docs: $(DEV) $(BUILT) ## Redraw pictures, then check links, code blocks and byte tables
	$(BIN)/python tools/draw_overview.py
	$(BIN)/python -m pytest -m "not slow" tests/meta/test_docs_*.py tests/meta/test_wire_tables.py

dashboards: $(DEV) $(BUILT) ## Make Grafana's dashboards and Prometheus' rules again, of dashboards/
	$(BIN)/python tools/make_dashboards.py

demo: $(BUILT) ## Watch a host and its guests exchange traffic, with numbers; ends by itself
	$(BIN)/vbnet demo

ci: ## Do all that must pass before a change lands
	.ci/run

clean: ## Remove everything that was built
	rm -rf $(VENV) target dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find vbnet -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BASE): tools/find-python.sh
	@python=$$(PYTHON="$(PYTHON)" tools/find-python.sh) && "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade 'pip>=25.1' 'maturin>=1.9,<2'
	@touch $@

$(DEV): $(BASE) pyproject.toml
	$(BIN)/python -m pip install --group dev
	@touch $@

# One native module is installed at a time, so building one profile forgets the others.
$(BUILT): $(BASE) pyproject.toml $(RUST_SOURCES)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --quiet --profile $(PROFILE)
	@rm -f $(VENV)/.built-*
	@touch $@
