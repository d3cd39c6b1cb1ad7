# make demo    trains the demo into runs/openmoji, or goes on with it, and prints its report
# make test    every test but the long ones
# make check   lint and every test
# make lint    ruff, pyright, notebooks without outputs
# make format  rewrites the sources as `make lint` wants them
# make clean   removes caches; `rm -r .venv` removes the environment as well
#
# Variables: WORKDIR=runs/openmoji  SEED=0  FRESH=1 (train from the beginning)  PYTHON=python3.12
#            WORKERS=2 (processes of the tests)
# Each target makes .venv and installs into it what it lacks. Nothing but pip needs a network.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

WORKDIR ?= runs/openmoji
SEED ?=
FRESH ?=
PYTHON ?=
EXTRAS ?= demo,dev,notebook
WORKERS ?= 2

comma := ,
BIN := .venv/bin
# A step's arrays are tens of megabytes; with small pages a fifth of the time goes into mapping them.
HUGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
INSTALLED := .venv/.installed-$(subst $(comma),-,$(EXTRAS))
SOURCES := flamingo_jax experiments launch tests setup.py
NOTEBOOKS := $(wildcard experiments/notebooks/*.ipynb)

# The wheel `pyright[nodejs]` holds all that pyright needs: it is not to ask for news of itself.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help install demo test check lint format clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

install: $(INSTALLED)

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	      2> /dev/null; then exec $$python -m venv --clear .venv; fi; \
	done; \
	echo "make: $(if $(PYTHON),$(PYTHON) is no,there is no) Python >= 3.11 with the module venv;" \
	  "install one (python3.11 and python3.11-venv) or give PYTHON=/its/path" >&2; exit 1

$(INSTALLED): setup.py constraints.txt | $(BIN)/python
	@echo "make: installing flamingo_jax[$(EXTRAS)] into .venv, some minutes the first time"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(INSTALLED)
ifneq ($(filter-out 0,$(FRESH)),)
	@if [ -f "$(WORKDIR)/config.json" ]; then rm -rf -- "$(WORKDIR)"; \
	elif [ -e "$(WORKDIR)" ]; then \
	  echo "make: FRESH=1 removes a run, but $(WORKDIR) holds no config.json: remove it yourself" >&2; \
	  exit 2; fi
endif
	@$(HUGE_PAGES) $(BIN)/python -m flamingo_jax train --config=experiments/openmoji.py --workdir="$(WORKDIR)" \
	  $(if $(SEED),--config.seed=$(SEED))

test: $(INSTALLED)
	@$(PYTEST)

# The long tests with LLVM's optimisation, as users run; tests/conftest.py leaves it out otherwise.
check: lint test
	@XLA_FLAGS= $(PYTEST) -m slow

lint: $(INSTALLED)
	@$(BIN)/ruff check --quiet $(SOURCES) $(NOTEBOOKS)
	@$(BIN)/ruff format --check --quiet $(SOURCES) $(NOTEBOOKS)
	@$(BIN)/pyright
	@$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify $(NOTEBOOKS))

format: $(INSTALLED)
	@$(BIN)/ruff check --fix --quiet $(SOURCES) $(NOTEBOOKS)
	@$(BIN)/ruff format --quiet $(SOURCES) $(NOTEBOOKS)
	@$(if $(NOTEBOOKS),$(BIN)/nbstripout $(NOTEBOOKS))

clean:
	@rm -rf .cache .hypothesis .pytest_cache .ruff_cache build dist *.egg-info
	@find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
