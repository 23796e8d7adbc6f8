# `make up` runs a fleet, `make test` runs all checks. Both make their environment in .venv first; the second time is quick.
#   make up ARGS="--workers 2 --port 0"      PYTHON=/path/to/python3.12 make up

VENV ?= .venv
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --prefer-binary
# Quick ones first: a mistake shows early.
UNIT_TESTS = $(filter-out tests/fleet/ tests/fakes/,$(sort $(wildcard tests/*/)))
# Files of tests side by side: much of their time is waiting.
JOBS ?= 3
SIDE_BY_SIDE = -n $(JOBS) --dist loadfile
ARGS ?=

.PHONY: up test check unit fleet clean
.DEFAULT_GOAL := up

up: $(VENV)/.local
	@exec $(BIN)/puna up $(ARGS)

test: check
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(UNIT_TESTS) $(wildcard tests/fleet/) $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(UNIT_TESTS) $(ARGS)

fleet: $(VENV)/.dev
	$(BIN)/python -m pytest tests/fleet $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Packages are installed as wheels: nothing here needs a compiler.
$(VENV)/.local: pyproject.toml | $(BIN)/python
	@echo "installing Puna and what it needs into $(VENV)"
	@$(PIP) --editable '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing Puna, its tools and tests into $(VENV)"
	@$(PIP) --editable '.[local,dev]'
	@touch $@ $(VENV)/.local

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Puna needs Python 3.11 or later; install it, or say where it is: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
