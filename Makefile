# fleetbox from a checkout: GNU make, git and Python 3.11 are all that must be there. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
PYTEST := $(BIN)/python -m pytest

# `$(INSTALL) PACKAGE` installs what fleetbox itself cannot (it is not there yet, or tests alone need it).
define INSTALL
install() { \
    if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
        echo "the package $$1 is missing; install it first (Debian, Ubuntu: sudo apt-get install $$1)" >&2; return 1; \
    fi; \
    echo "installing $$1"; \
    local get=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300); \
    local install=("$${get[@]}" install -y --no-install-recommends "$$1"); \
    "$${install[@]}" >/dev/null 2>&1 || { "$${get[@]}" update && "$${install[@]}" >/dev/null; }; \
}; install
endef

.PHONY: help setup host demo check test-programs test-all-programs test test-fast test-all bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.installed ## make the virtual environment with the package in it (again only when pyproject.toml changed)
	@:

# Debian's python3 comes without ensurepip: python3-venv brings it. A half-made or moved environment is made anew.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "fleetbox needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(INSTALL) python3-venv; }
	@$(BIN)/pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "setup: installing fleetbox and its Python packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e '.[dev]'
	@touch $@

host: setup
	@$(BIN)/fleetbox doctor --fix

demo: host ## boot a cluster of three machines and run `uname -a` on each
	@$(BIN)/fleetbox up $(DEMO) --members 3
	@$(BIN)/fleetbox ls
	@$(BIN)/fleetbox exec $(DEMO) uname -a
	@printf '%s\n' "" \
	    "The cluster $(DEMO) runs. Go on with" \
	    "  $(BIN)/fleetbox ssh $(DEMO)/node-1          log in" \
	    "  $(BIN)/fleetbox status $(DEMO)              look at it" \
	    "  $(BIN)/fleetbox stop $(DEMO)                stop its machines, keep their disks" \
	    "and remove it with" \
	    "  $(BIN)/fleetbox destroy $(DEMO) --yes"

check: setup ## ruff, mypy --strict, generated files, direction of imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m fleetbox_cli.generate --check
	@$(PYTEST) -q --no-header --no-summary tests/repo/test_layers.py

# Tests make networks of their own with `ip`, and look at the man pages as users do.
test-programs:
	@command -v ip >/dev/null || { $(INSTALL) iproute2; }
	@command -v man >/dev/null || { $(INSTALL) man-db; }

test: host test-programs check ## every test but the second tier's, those with real machines last
	@$(PYTEST) -m 'not vm and not slow' -n 2 -q
	@$(PYTEST) -m 'vm and not slow' --durations=10

test-fast: test-programs check ## every test that boots no machine
	@$(PYTEST) -m 'not vm and not slow' -n 2

# The second tier looks at real terminals, and at what users have beside fleetbox.
test-all-programs: setup
	@for program in tmux zsh fish rsync; do command -v $$program >/dev/null || { $(INSTALL) $$program; }; done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore 'ansible-core>=2.16'

test-all: test test-all-programs ## every test and the second tier: what is slow, with and without machines
	@$(PYTEST) -m slow --durations=10

bench: host ## the measurements of benchmarks/, one table each
	@for benchmark in benchmarks/[a-z]*.py; do $(BIN)/python "$$benchmark"; done

docs: setup ## the documentation as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean: ## remove what the targets made in this folder (clusters and images stay)
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
