# `make help` lists the targets. The first one that is called sets everything up in $(VENV).

PYTHON ?= python3 python3.13 python3.12 python3.11
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501
HEADLESS ?=
ARGS ?=
WORKERS ?= auto
SPREAD = --numprocesses $(WORKERS) --dist loadfile
OLDEST := .venv-oldest
OLDEST_TESTS := tests/unit/test_odd_runs.py tests/unit/test_run_folder.py \
	tests/unit/test_set_readers.py tests/unit/test_evaluation_sets.py tests/unit/test_uploads.py \
	tests/unit/test_charts.py tests/unit/test_report.py tests/unit/test_estimates.py \
	tests/pages/test_odd_runs.py
DEMO := $(or $(STAGELENS_HOME),runs)/digits

REQUIREMENTS := $(VENV)/.requirements-installed
PACKAGE := $(VENV)/.package-installed

# A Python that was removed, or a set-up that was interrupted, invalidates what the stamps say.
$(shell test -x $(BIN)/python || rm -f $(REQUIREMENTS) $(PACKAGE))

.DEFAULT_GOAL := help
.PHONY: help app test screenshots lint bench fuzz same test-oldest audit setup clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 20
	@echo "Variables: PORT=8501, HEADLESS=1 (open no browser), ARGS='...' (for pytest), WORKERS=1, PYTHON=..."

app: setup ## build the demo on the first start, then open the dashboard
	@test -e $(DEMO) || $(BIN)/stagelens demo digits --out $(DEMO)
	$(BIN)/streamlit run app.py --server.port $(PORT) $(if $(filter 1,$(HEADLESS)),--server.headless true)

test: setup ## all tests, and beside them linters, types and layers
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)

screenshots: setup ## the browser tests, with a picture of every page in light and dark
	STAGELENS_SCREENSHOTS=1 $(BIN)/python -m pytest $(SPREAD) tests/browser $(ARGS)

lint: setup ## ruff, mypy and import-linter
	$(BIN)/python -m pytest -q tests/unit/test_linters.py

bench: setup ## benchmarks, which `make test` leaves out
	$(BIN)/python -m pytest --timeout=0 -s tests/benchmarks $(ARGS)

fuzz: setup ## broken input for every reader, then the large grids; ARGS='--count 200000'
	$(BIN)/python -m tests.fuzz $(ARGS)
	$(BIN)/python -m pytest $(SPREAD) -m extensive

same: setup ## the numbers of two versions, side by side: make same BASE=<commit>
	$(BIN)/python -m tests.same --base $(BASE) $(ARGS)

test-oldest: setup ## a part of the tests with the oldest versions that are allowed (torch excepted)
	test -x $(OLDEST)/bin/python || $(BIN)/python -m venv $(OLDEST)
	sed -n '/^torch>/d; s/^\([a-z-]*\)>=\([^,]*\),.*/\1==\2/p' requirements.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --quiet -r requirements.txt \
		-c $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	$(OLDEST)/bin/python -m pytest -q $(SPREAD) $(OLDEST_TESTS) $(ARGS)

audit: setup ## known weaknesses of what is installed (asks an index of them by pip-audit)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet 'pip-audit>=2.9,<3'
	$(BIN)/pip-audit --requirement requirements.txt

setup: $(PACKAGE) ## make the environment; instant when there is nothing to do

clean: ## remove caches and outputs
	rm -rf build dist test-output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	rm -rf $(VENV) $(OLDEST)

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
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(PACKAGE): $(REQUIREMENTS) pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@
