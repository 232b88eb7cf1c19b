# `make help` lists the targets. The first one that is called sets everything up in $(VENV).

PYTHON ?= python3 python3.13 python3.12 python3.11
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501
HEADLESS ?=
ARGS ?=
WORKERS ?= auto
SPREAD = --numprocesses $(WORKERS) --dist loadfile
IN_TEST := not extensive and (essential or not slow)
IN_TEST_SLOW := not extensive and not essential and slow
OLDEST := .venv-oldest
OLDEST_TESTS := tests/unit/test_odd_runs.py tests/unit/test_run_folder.py \
	tests/unit/test_set_readers.py tests/unit/test_evaluation_sets.py tests/unit/test_uploads.py \
	tests/unit/test_charts.py tests/unit/test_report.py tests/unit/test_estimates.py \
	tests/pages/test_odd_runs.py
DEMO := $(or $(STAGELENS_HOME),runs)/digits
LOCK := deploy/requirements.lock
TOOLS := .venv-tools
TORCH_INDEX ?= $(shell sed -n 's/^ARG TORCH_INDEX=//p' deploy/Containerfile)
PIP := -m pip install --disable-pip-version-check

REQUIREMENTS := $(VENV)/.requirements-installed
PACKAGE := $(VENV)/.package-installed
TESTS := $(VENV)/.tests-installed
TOOLS_INSTALLED := $(TOOLS)/.installed

# What is compiled once is not compiled again by a hundred processes of the tests.
unexport PYTHONDONTWRITEBYTECODE

# A Python that was removed, or a set-up that was interrupted, invalidates what the stamps say.
$(shell test -x $(BIN)/python || rm -f $(REQUIREMENTS) $(PACKAGE) $(TESTS))
$(shell test -x $(TOOLS)/bin/python || rm -f $(TOOLS_INSTALLED))

.DEFAULT_GOAL := help
.PHONY: help app test test-slow screenshots lint bench fuzz same test-oldest lock sbom audit setup \
	clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 20
	@echo "Variables: PORT=8501, HEADLESS=1 (open no browser), ARGS='...' (for pytest), WORKERS=1, PYTHON=..."

app: setup ## build the demo on the first start, then open the dashboard
	@test -e $(DEMO) || $(BIN)/stagelens demo digits --out $(DEMO)
	$(if $(filter 1,$(HEADLESS)),STREAMLIT_SERVER_HEADLESS=true) $(BIN)/stagelens app --port $(PORT)

test: $(TESTS) ## linters, types, layers, and all tests but the slow ones
	$(BIN)/python -m pytest $(SPREAD) -m '$(IN_TEST)' $(ARGS)

test-slow: $(TESTS) ## the slow tests: with `make test`, all that CI runs
	$(BIN)/python -m pytest $(SPREAD) -m '$(IN_TEST_SLOW)' $(ARGS)

screenshots: $(TESTS) ## the browser tests, with a picture of every page in light and dark
	STAGELENS_SCREENSHOTS=1 $(BIN)/python -m pytest $(SPREAD) tests/browser $(ARGS)

lint: $(TESTS) ## ruff, mypy and import-linter
	$(BIN)/python -m pytest -q tests/unit/test_linters.py

bench: $(TESTS) ## benchmarks, which `make test` leaves out
	$(BIN)/python -m pytest --timeout=0 -s tests/benchmarks $(ARGS)

fuzz: $(TESTS) ## broken input for every reader, then the large grids; ARGS='--count 200000'
	$(BIN)/python -m tests.fuzz $(ARGS)
	$(BIN)/python -m pytest $(SPREAD) -m extensive

same: $(TESTS) ## the numbers of two versions, side by side: make same BASE=<commit>
	$(BIN)/python -m tests.same --base $(BASE) $(ARGS)

test-oldest: $(TESTS) ## a part of the tests with the oldest versions that are allowed (torch excepted)
	test -x $(OLDEST)/bin/python || $(BIN)/python -m venv $(OLDEST)
	sed -n '/^torch>/d; s/^\([a-z-]*\)>=\([^,]*\),.*/\1==\2/p' requirements.txt requirements-dev.txt \
		> $(OLDEST)/constraints.txt
	sed '/^-r /d; /^trl>/d' requirements-dev.txt > $(OLDEST)/tests.txt # trl needs newer ones
	$(OLDEST)/bin/python $(PIP) --quiet -r requirements.txt -r $(OLDEST)/tests.txt \
		-c $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python $(PIP) --quiet --no-deps --editable .
	$(OLDEST)/bin/python -m pytest -q $(SPREAD) $(OLDEST_TESTS) $(ARGS)

lock: $(TOOLS_INSTALLED) ## the container's packages with their hashes; ARGS=--upgrade for newer ones
	@$(TOOLS)/bin/python -c "import platform, sys; \
		here = sys.version_info[:2], platform.system(), platform.machine(); \
		sys.exit(here != ((3, 11), 'Linux', 'x86_64') and \
			f'make lock needs what the container has, Python 3.11 on Linux x86_64, not {here}: ' \
			'make distclean, then make lock PYTHON=python3.11')"
	CUSTOM_COMPILE_COMMAND='make lock' $(TOOLS)/bin/pip-compile --quiet --generate-hashes \
		--allow-unsafe --strip-extras --no-emit-options --no-emit-index-url \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--output-file $(LOCK) deploy/requirements.in $(ARGS)

sbom: $(TOOLS_INSTALLED) ## what the container runs with, as CycloneDX: dist/stagelens.cdx.json
	mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py requirements $(LOCK) --pyproject pyproject.toml \
		--output-reproducible --output-file dist/stagelens.cdx.json

audit: $(TOOLS_INSTALLED) ## known vulnerabilities of what the container runs with (asks an index of them)
	$(TOOLS)/bin/python -m tests.audit $(LOCK)

setup: $(PACKAGE) ## make the environment; instant when there is nothing to do

clean: ## remove caches and outputs
	rm -rf build dist test-output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	rm -rf $(VENV) $(OLDEST) $(TOOLS)

$(REQUIREMENTS): requirements.txt
	@usable='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if $(BIN)/python -c "$$usable" 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1; \
	then exit 0; fi; \
	for python in $(PYTHON); do \
		if $$python -c "$$usable" >/dev/null 2>&1; then \
			echo "Making $(VENV) with $$($$python --version)"; \
			exec $$python -m venv --clear $(VENV); \
		fi; \
	done; \
	echo "StageLens needs Python 3.11 or newer with its venv module, and found none among: $(PYTHON)" >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1
	$(BIN)/python $(PIP) -r requirements.txt
	@touch $@

$(PACKAGE): $(REQUIREMENTS) pyproject.toml
	$(BIN)/python $(PIP) --quiet --no-deps --editable .
	@touch $@

$(TESTS): $(PACKAGE) requirements-dev.txt
	$(BIN)/python $(PIP) -r requirements-dev.txt
	@touch $@

$(TOOLS_INSTALLED): $(PACKAGE) Makefile
	$(BIN)/python -m venv $(TOOLS)
	$(TOOLS)/bin/python $(PIP) --quiet 'pip-tools>=7.5,<8' 'pip-audit>=2.9,<3' 'cyclonedx-bom>=7,<8'
	@touch $@
