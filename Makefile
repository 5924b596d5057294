# `make run` and `make test` set everything up by themselves; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
PIP = $(VENV)/bin/python -m pip install --constraint requirements.lock

.DEFAULT_GOAL := help
.PHONY: help run setup test-fast test test-all check ci lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: setup ## Install, get the sample data, run the pipeline, show the results
	dvc pull --quiet --remote sample data.dvc
	dvc repro
	@crt show

setup: $(VENV)/.installed ## Create the virtual environment and install the project

# One thread for each worker: more would wait for each other. The marks are explained in pyproject.toml.
PYTEST = OMP_NUM_THREADS=1 pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-fast: $(VENV)/.installed-test ## Run the quick tests: no pipeline, about a minute
	$(PYTEST) -m "not slow and not nightly and not quality"

test: $(VENV)/.installed-test ## Run the tests that every change must pass, under 15 minutes
	$(PYTEST)

test-all: $(VENV)/.installed-test ## Run all tests, with simulations at full size and the README's results: for the night
	$(PYTEST) -m ""

check: $(VENV)/.installed-test ## Lint, format check, type check
	ruff check .
	ruff format --check .
	mypy

ci: check test ## What CI runs

lock: $(VENV)/.installed-test ## Record the installed versions in requirements.lock
	python -m pip freeze --exclude-editable > requirements.lock

clean: ## Remove the virtual environment and resume files (never data or results)
	rm -rf $(VENV) .work

$(VENV)/.installed: pyproject.toml requirements.lock
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	-@$(VENV)/bin/python -m pip uninstall --quiet --yes crt 2>/dev/null # the distribution's former name
	$(PIP) --editable '.[pipeline]'
	-@git config merge.crt.driver "$(VENV)/bin/crt merge-driver %O %A %B %P" # git runs it in the root; no quotes: DVC reads this file
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[pipeline,test]'
	@touch $@
