# phikit: `make demo` and `make test` are all a newcomer needs; both set up .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RECIPE ?= nano

.PHONY: help setup demo test test-fast check docs bench-pivots bench-server clean

help:
	@echo "make demo        set everything up, then: phikit run $(RECIPE)   (RECIPE=smoke: a minute)"
	@echo "make test        set everything up, then run every test"
	@echo "make test-fast   the tests that take seconds"
	@echo "make check       lint, format, types, import rules, the drawn page"
	@echo "make bench-pivots  what Pivotal Token Search costs and finds, beside the plain algorithm"
	@echo "make bench-server  what HTTP costs: 32 clients against the engine without it"
	@echo "make docs        draw docs/architecture.md anew"
	@echo "make clean       remove the environment and caches; runs/ stays"

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "phikit needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/phikit run $(RECIPE)

test: setup
	$(BIN)/python -m pytest

test-fast: setup
	$(BIN)/python -m pytest -m 'not slow'

check: setup
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/draw_architecture.py --check

bench-pivots: setup
	$(BIN)/python benchmarks/pivots.py

bench-server: setup
	$(BIN)/python benchmarks/server.py

docs: setup
	$(BIN)/python tools/draw_architecture.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
