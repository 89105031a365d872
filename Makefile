# From a fresh clone: make demo, make test. Needs Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test setup lint bench ui docs lock clean

demo: setup  ## source → store → strategy → result → picture, with no account and no network
	$(BIN)/tapelab demo

test: setup  ## the tests that CI runs
	$(BIN)/pytest -n auto

setup: .venv/ready  ## .venv with everything that development needs

.venv/ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "tapelab needs Python 3.11 to 3.13; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ echo "Python's venv is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

lint: setup  ## style, types, and that what is generated is up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## our speed beside the peers', as ratios
	$(BIN)/python -m bench

ui: setup  ## the web page
	$(BIN)/tapelab ui

docs: setup  ## the page of commands and settings, which is made from the code
	$(BIN)/python -m tapelab.faces.manual > docs/commands.md

lock: setup  ## pin what pyproject.toml asks for; the lock names no host
	$(BIN)/uv pip compile --quiet --no-emit-index-url --no-annotate --universal --python-version 3.11 \
		--custom-compile-command "make lock" --extra ui --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
