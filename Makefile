# `make serve` and `make test` do all the set-up they need; a second run finds it done.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help serve test lint format proto bench bench-peers clean

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

serve: $(READY) ## Serve the demo model on this machine (ARGS="MODEL --replicas 2" for others)
	@$(BIN)/trunkline serve $(ARGS)

test: $(VENV)/.ready-dev lint ## Lint, type-check and run all tests
	@$(BIN)/pytest

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
