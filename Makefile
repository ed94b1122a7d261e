# Everything a contributor or a newcomer runs. GNU make 4.3 and Python 3.11 or newer are needed.
#
# Variables:
#   PYTHON       which Python makes .venv
#   TORCH_INDEX  where torch comes from, instead of pip's own index; the index of CPU builds saves
#                gigabytes on a machine without a GPU
#   OUT          where a demo keeps its runs, instead of demo-run or introspect-run
#   ARGS         options of the benchmark, such as ARGS=--quick

PYTHON ?= python3
TORCH_INDEX ?=
OUT ?=
ARGS ?=

BIN := .venv/bin
INTROSPECT := $(or $(OUT),introspect-run)
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
INPUTS := pyproject.toml constraints.txt
TORCH_STAMP := .venv/.stamp-torch
RUN_STAMP := .venv/.stamp-all
DEV_STAMP := .venv/.stamp-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo demo-introspect test test-slow test-faults bench-capture check coverage format clean

help:  ## list the targets
	@echo "make TARGET [PYTHON=python3.12] [TORCH_INDEX=URL] [OUT=FOLDER]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name what; do printf '  %-16s %s\n' "$$name" "$$what"; done
	@echo
	@echo "Without a GPU, TORCH_INDEX=URL takes torch from an index of CPU builds (see README.md)."

setup: $(DEV_STAMP)  ## make .venv with everything the tests and checks use

demo: $(RUN_STAMP)  ## capture, verify and report on the bundled model, offline; again: resume
	$(BIN)/actscope demo $(if $(OUT),--out $(OUT))

demo-introspect: $(RUN_STAMP)  ## questions, stated confidence and five analyses on the bundled model, offline
	$(BIN)/actscope introspect collect --output-dir $(INTROSPECT)/base
	$(BIN)/actscope introspect collect --model-type finetuned --output-dir $(INTROSPECT)/finetuned
	$(BIN)/actscope introspect inspect --data-dir $(INTROSPECT)/base --check-all-types \
		--compare-with $(INTROSPECT)/finetuned
	$(BIN)/actscope introspect analyze --data-dir $(INTROSPECT)/base \
		--compare-with $(INTROSPECT)/finetuned --out $(INTROSPECT)/analysis

test: $(DEV_STAMP)  ## run the test suite without its slow tests and most of its faults
	$(BIN)/python -m pytest -n 2 -m "not slow and not faults"

test-slow: $(DEV_STAMP)  ## run the slow tests
	$(BIN)/python -m pytest -n 2 -m slow

test-faults: $(DEV_STAMP)  ## inject every fault and write docs/reliability.md (ten minutes on 2 cores)
	$(BIN)/python benchmarks/reliability.py --out benchmarks/results/reliability.json \
		--page docs/reliability.md -- -n 2 --dist loadfile

bench-capture: $(DEV_STAMP)  ## measure docs/performance.md again, an hour of a quiet machine
	$(BIN)/python benchmarks/capture.py $(ARGS)

check: $(DEV_STAMP)  ## format, lint, types, tests: what must pass before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) --no-print-directory test

coverage: $(DEV_STAMP)  ## judge every site on every type again: docs/coverage.md, ten minutes
	$(BIN)/python benchmarks/coverage.py --again

format: $(DEV_STAMP)  ## format the code and fix what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove caches, builds and the demo's output; .venv stays
	rm -rf demo-run demo-report.html introspect-run build dist .pytest_cache .ruff_cache .hypothesis
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: a later package must find it there and pull no other build.
# The stamps make a second call instant until the requirements change.
$(TORCH_STAMP): constraints.txt | $(BIN)/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

$(RUN_STAMP): $(INPUTS) $(TORCH_STAMP)
	$(PIP) -e '.[all]'
	@touch $@

$(DEV_STAMP): $(INPUTS) $(TORCH_STAMP)
	$(PIP) -e '.[dev]'
	@touch $(RUN_STAMP) $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "actscope needs Python 3.11 or newer, and there is no $(PYTHON);" \
			"name one with: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "actscope needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
			"name another with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
