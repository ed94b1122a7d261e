# Every target works alone on a fresh clone. On a machine without a GPU, get the CPU build of torch with
#   make TARGET TORCH_INDEX=<the index that holds PyTorch's CPU builds>

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==.*\)$$/\1/p' constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FILES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo
	@echo 'Variables: PYTHON=python3.12  TORCH_INDEX=URL (index of CPU builds of torch)  OUT=folder of the demo'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "actscope needs Python 3.11 or newer; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: asked for through another package, pip would fetch another build of it.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@touch $@

$(VENV)/.demo: $(FILES) $(VENV)/.torch
	$(PIP) -e '.[all]'
	@touch $@

$(VENV)/.dev: $(FILES) $(VENV)/.torch
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

setup: $(VENV)/.dev  ## the environment of the tests, in .venv

demo: $(VENV)/.demo  ## the main job on the bundled model, offline; writes demo-report.html
	$(BIN)/actscope demo $(if $(OUT),--out $(OUT))

test: setup  ## the test suite without the slow tests
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: setup  ## the slow tests
	$(BIN)/python -m pytest -n 2 -m slow

check: setup  ## format, lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) test

format: setup  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment, caches and the demo's output
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis demo-run demo-report.html
