# Every target sets up what it needs from nothing. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
# With LABELLED each line of output says which tests it is from.
pytest = set -o pipefail; $(BIN)/python -m pytest $(2) $(if $(LABELLED),2>&1 | sed --unbuffered 's/^/$(1): /')
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup deps demo test test-agent test-pipeline test-parts test-standin check format docs dashboards rules previews bench test-vllm test-vllm-all soak test-gpu clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet pip
	$(BIN)/pip install --quiet --editable . --group dev
	@touch $@

setup: $(STAMP) ## the development environment in .venv

deps: ## Debian packages that the full tests use (root; starts no service)
	bash tests/deps.sh

demo: setup ## stand-in vLLM servers that load, crash and come back, watched live
	$(BIN)/vllm-agent demo

# One waits for servers, one for Prometheus, one computes: together they take as long as the longest.
test: setup ## the tests (needs neither a GPU nor a network)
	@$(MAKE) --no-print-directory --keep-going --jobs=3 LABELLED=yes test-agent test-pipeline test-parts

test-agent: setup ## of the tests those of the agent and its servers as processes
	$(call pytest,agent,tests/e2e)

test-pipeline: setup ## of the tests those of alerts, dashboards and deployment
	$(call pytest,pipeline,tests/pipeline)

test-parts: setup ## of the tests all others
	$(call pytest,parts,--ignore=tests/e2e --ignore=tests/pipeline)

test-standin: setup ## the stand-in vLLM against what was recorded of the real one
	$(BIN)/python -m pytest tests/standin

check: setup ## format, lint, types, import order, generated files unchanged
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.generated --check

format: setup ## formats the code and rewrites generated files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m tests.generated

docs: setup ## rewrites generated files only
	$(BIN)/python -m tests.generated

dashboards: setup ## rewrites the Grafana dashboards only
	$(BIN)/python -m dashboards

rules: setup ## rewrites the alert rules only
	$(BIN)/python -m alerts

previews: setup ## draws the pictures of the dashboards in docs/ (needs Debian's chromium)
	$(BIN)/python -m tests.previews

bench: setup ## the bars, beside peers, as one table
	$(BIN)/python -m benchmarks

test-vllm: setup ## a real vLLM on the CPU, a handful of launches (builds its environment once, cached)
	$(PYTHON) tests/vllm/prepare.py
	$(BIN)/python -m pytest tests/vllm -m "not long" -rP

test-vllm-all: setup ## a real vLLM on the CPU, every way of ending, idle and with streams
	$(PYTHON) tests/vllm/prepare.py
	$(BIN)/python -m pytest tests/vllm -rP

soak: setup ## random operations on managed servers, and half an hour without a wrong page
	$(BIN)/python -m pytest tests/e2e tests/pipeline -m soak -rP

test-gpu: setup ## a real NVIDIA GPU and its driver, where this machine has them
	$(BIN)/python -m pytest tests/gpu -rP

clean: ## removes the environment and caches of this checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
