# `make run` and `make test` set everything up by themselves; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
PIP = $(VENV)/bin/python -m pip install --constraint requirements.lock

.DEFAULT_GOAL := help
.PHONY: help run setup test check ci code-deps lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: setup ## Install, get the sample data, run the pipeline, show the results
	dvc pull --quiet data.dvc
	dvc repro
	@crt show

setup: $(VENV)/.installed ## Create the virtual environment and install the project

test: $(VENV)/.installed-test ## Run the whole test suite
	OMP_NUM_THREADS=1 pytest --numprocesses auto --maxprocesses 4 --dist worksteal # one thread each: they would starve each other

check: $(VENV)/.installed-test ## Lint, format check, type check
	ruff check .
	ruff format --check .
	mypy

ci: check test ## What CI runs

code-deps: $(VENV)/.installed ## Write the stages' lists of code into dvc.yaml
	python tests/pipeline/code_deps.py

lock: $(VENV)/.installed-test ## Record the installed versions in requirements.lock
	python -m pip freeze --exclude-editable > requirements.lock

clean: ## Remove the virtual environment and resume files (never data or results)
	rm -rf $(VENV) .work

$(VENV)/.installed: pyproject.toml requirements.lock
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	-@git config merge.crt.driver "$(VENV)/bin/crt merge-driver %O %A %B %P" # git runs it in the root; no quotes: DVC reads this file
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	@touch $@
