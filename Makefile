# airmesh: one target per idea. `make help` lists them.
SHELL := /bin/bash
PYTHON := .venv/bin/python
LAB ?= air

.PHONY: help setup lab lab-down test e2e check format lock
help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: .venv/.ready ## install what is missing (Debian packages, .venv)

.venv/.ready: requirements.lock requirements/apt.txt requirements/setup.sh
	@requirements/setup.sh

lab: setup ## a three-node Kubernetes with airmesh as its network, and a tour of it (LAB=name)
	@$(PYTHON) -m lab preflight
	@$(PYTHON) -m lab up --name $(LAB)
	@$(PYTHON) -m lab tour --name $(LAB)

lab-down: setup ## remove the lab, and prove that nothing of it is left (LAB=name)
	@$(PYTHON) -m lab down --name $(LAB)

test: setup check ## the whole test suite (what CI runs)
	$(PYTHON) -m lab build --if-possible
	$(PYTHON) -m pytest --durations=25 -m "not slow"

FOCUS ?= \[sig-network\].*\[Conformance\]
SKIP ?=
e2e: setup ## the stock Kubernetes suite against the lab (LAB=, FOCUS=, SKIP=); goes on where it stopped
	@$(PYTHON) -m lab up --name $(LAB)
	@$(PYTHON) -m lab.conformance --name $(LAB) --focus '$(FOCUS)' --skip '$(SKIP)'

check: setup ## style, types, walls of the house
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy .

format: setup ## write the style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lock: setup ## resolve the manifests into requirements.lock (needs uv)
	uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 \
	  --output-file requirements.lock requirements/dev.in chassis/pyproject.toml cli/pyproject.toml $(wildcard services/*/pyproject.toml)
