# One command each: `make train`, `make test`. Plain `make` lists the targets.
PYTHON ?= python3
JAX ?= cpu
TIER ?= core
BUDGET_core := 900# seconds, beyond which the suite fails
BUDGET_all := 2700
JOBS ?= 2# processes that share the tests
ARGS ?=
RUN := .venv/bin/python -m
EXTRA := $(if $(filter cpu,$(JAX)),,[$(JAX)])

.DEFAULT_GOAL := help
.PHONY: help train test soak lint types index clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

train: .venv/runtime-$(JAX) ## train a network on the digits: make train [ARGS="--epochs 5"] [JAX=cuda13|tpu]
	$(RUN) scripts.train $(ARGS)

test: .venv/dev ## prove the library on this machine: make test [TIER=core|all]
	TIER=$(TIER) TEST_BUDGET_SECONDS=$(BUDGET_$(TIER)) $(RUN) pytest -n $(JOBS) $(ARGS)

soak: .venv/dev ## the long tests: twenty kills of a training run, each resumed
	TIER=soak $(RUN) pytest $(ARGS)

lint: .venv/dev ## style and format
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: .venv/dev ## the types of the public API
	$(RUN) pyright

index: .venv/runtime-$(JAX) ## write INDEX.md and the table of docs/evidence anew
	$(RUN) scripts.evidence
	$(RUN) scripts.index

clean: ## remove the environment and caches, never runs/
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .ruff_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/runtime-$(JAX): requirements.txt pyproject.toml | .venv/bin/python
	$(RUN) pip install --quiet --disable-pip-version-check -e '.$(EXTRA)'
	@touch $@

.venv/dev: requirements-dev.txt .venv/runtime-$(JAX)
	$(RUN) pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
