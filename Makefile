# SPDX-License-Identifier: Apache-2.0
# Sets up a private environment in .venv and runs things in it; needs Python 3.11+, make and git.
#
#   make demo       train a Brax policy with the shipped weights, end with a picture and a video
#   make test       the test suite (make test-slow: the long tests as well)
#   make lint       ruff, pyright, codespell
#   make format     let ruff rewrite what it can
#   make venv       only create and fill the environment
#   make lock       write the constraints file of this Python from what resolves today
#   make clean      remove the environment and caches
#
# Variables: PYTHON=python3.12 picks the interpreter, WORKERS=4 the test processes,
# PYTEST_ARGS='-k gae' goes to pytest, DEMO_ARGS='--seed 1' to the demo.

SHELL := /bin/sh
.DEFAULT_GOAL := help
# Another environment that happens to be active must not leak into ours.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
DEMO_ARGS ?=
PYTEST_ARGS ?=
RUN_EXTRAS := robotics,supervised
TEST_EXTRAS := $(RUN_EXTRAS),export,evo,test
LINT_EXTRAS := $(TEST_EXTRAS),lint

# The first interpreter that runs and is new enough. `command -v` alone would also find the
# launchers of a version manager whose version is not selected.
CHECK := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
FIND_PYTHON = for p in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
    "$$p" -c '$(CHECK)' >/dev/null 2>&1 && { echo "$$p"; exit 0; }; done
NO_PYTHON = no Python 3.11 or newer with the venv module was found; install one or name it: make PYTHON=/path/to/python3.11

# Installs the named extras, held to the versions that are known to work where they are recorded.
PIP := $(BIN)/python -m pip --disable-pip-version-check
install = pins=constraints/py$$($(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])').txt; \
    if [ -f $$pins ]; then held="-c $$pins"; \
    else held=; echo "no recorded versions for this Python, taking the newest"; fi; \
    $(PIP) --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
    echo "installing into $(VENV): extras $(1) (a few minutes the first time)"; \
    $(PIP) install --quiet $$held -e ".[$(1)]"

.PHONY: help demo test test-slow lint format venv lock clean

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

# One stamp for each set of extras: a repeated call costs nothing, a change of the dependencies reinstalls.
$(BIN)/python:
	@py=$$($(FIND_PYTHON)); \
	if [ -z "$$py" ]; then echo "$(NO_PYTHON)" >&2; exit 1; fi; \
	echo "creating $(VENV) with $$("$$py" --version)"; \
	"$$py" -m venv --clear $(VENV)

$(VENV)/.run: pyproject.toml $(wildcard constraints/*.txt) | $(BIN)/python
	@$(call install,$(RUN_EXTRAS)) && touch $@

$(VENV)/.test: pyproject.toml $(wildcard constraints/*.txt) | $(BIN)/python
	@$(call install,$(TEST_EXTRAS)) && touch $(VENV)/.run $@

$(VENV)/.lint: pyproject.toml $(wildcard constraints/*.txt) | $(BIN)/python
	@$(call install,$(LINT_EXTRAS)) && touch $(VENV)/.run $(VENV)/.test $@

venv: $(VENV)/.lint

demo: $(VENV)/.run
	@$(BIN)/mnemosyne demo $(DEMO_ARGS)

test: $(VENV)/.test
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-slow: $(VENV)/.test
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not gpu" $(PYTEST_ARGS)

# Every tool has its say, also when an earlier one has found something.
lint: $(VENV)/.lint
	@failed=; \
	for check in "ruff check ." "ruff format --check ." pyright codespell; do \
	    echo "$$check"; $(BIN)/$$check || failed="$$failed [$$check]"; \
	done; \
	if [ -n "$$failed" ]; then echo "not clean:$$failed" >&2; exit 1; fi

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(BIN)/python
	@$(BIN)/python constraints/lock.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist
