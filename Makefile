# `make serve` and `make test` do all the set-up they need; a second run finds it done.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests of whole clusters mostly wait: for one to start, to drain, to miss what it has lost.
CLUSTERS := tests/chaos tests/e2e tests/multinode tests/workers/replica

.DEFAULT_GOAL := help
.PHONY: help serve test test-clusters test-parts lint format proto bench bench-peers clean

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

serve: $(READY) ## Serve the demo model on this machine (ARGS="MODEL --replicas 2" for others)
	@$(BIN)/trunkline serve $(ARGS)

test: $(VENV)/.ready-dev lint ## Lint, type-check and run all tests
	@echo "Two pytests run side by side: each tells at its end what it has found."
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync test-clusters test-parts

test-clusters: $(VENV)/.ready-dev
	@$(BIN)/pytest $(CLUSTERS)

# Behind the clusters, of which some things are promised by the clock.
test-parts: $(VENV)/.ready-dev
	@nice $(BIN)/pytest $(CLUSTERS:%=--ignore=%)

lint: $(VENV)/.ready-dev ## Style, types, floors of the house, stale stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

format: $(VENV)/.ready-dev ## Mend style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(VENV)/.ready-dev ## Make the contract's stubs again
	@$(BIN)/python -m ops.stubs

bench: $(VENV)/.ready-dev ## Measure the engine on this machine
	@$(BIN)/trunkline bench engine

bench-peers: $(VENV)/.ready-dev ## Measure the engine beside its peers (ARGS="--model DIR --engines A,B --runs 3")
	@nice -n 15 $(BIN)/python -m ops.bench.peers.venvs
	@$(BIN)/trunkline bench peers $(ARGS)

clean: ## Forget everything that was installed or cached
	rm -rf $(VENV) .peers .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): constraints.txt pyproject.toml proto/pyproject.toml ops/setup.sh
	@PYTHON=$(PYTHON) ops/setup.sh $(VENV) .
	@touch $@

$(VENV)/.ready-dev: $(READY)
	@PYTHON=$(PYTHON) ops/setup.sh $(VENV) ".[dev]"
	@touch $@
