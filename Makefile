VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test full crash-test bench lint clean
.DEFAULT_GOAL := help

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.run ## a hospital transcription service, and the gap a new scanner opens (ARGS=--exit ends by itself)
	@$(BIN)/fairness-monitor demo $(ARGS)

test: lint ## linters, types, import contract, tests
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not full" $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

full: lint ## everything, with the long checks; results in artefacts/full.txt
	mkdir -p artefacts
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS) 2>&1 | tee artefacts/full.txt; exit $${PIPESTATUS[0]}

crash-test: $(VENV)/.test ## kill the running service 200 times over a real Kafka, and compare
	$(BIN)/python -m pytest -q -m full tests/crash $(ARGS)

bench: $(VENV)/.test ## throughput beside bare loops, as ratios in one run
	$(BIN)/fairness-monitor bench $(ARGS)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis artefacts

SHELL := /bin/bash

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fairness-monitor needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[parquet]'
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group test
	@touch $@
