# make demo    the whole job on built-in data, offline once installed
# make test    the tests
# make check   what CI runs: formatting, lint, types, tests
# make docs    the documentation site, in site/
# make kernels torch's kernels against float64 on several instruction sets, in all shapes, and the tables of docs/kernels.md
# make clean   remove the virtual environment and every generated file
#
# Each target makes .venv and installs what it needs, at the versions of constraints.txt; run again, that takes no time
# until pyproject.toml or constraints.txt changes. Another interpreter: make demo PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; 3.11 is what constraints.txt is made for.
ifndef PYTHON
PYTHON := $(shell for name in python3.11 python3 python3.12 python3.13; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v "$$name" && break; done)
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# The files of tests run side by side, each on one thread; all in one process: make test TOGETHER=
TOGETHER ?= --numprocesses auto --maxprocesses 8 --dist loadfile
# For another build of torch: make demo TORCH_ARGS="--index-url URL"
TORCH_ARGS ?=

.PHONY: help demo test check docs kernels format clean

help:
	@sed -n 's/^# \(make \)/\1/p' Makefile

demo: $(VENV)/.core
	$(BIN)/amc demo $(DEMO_ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(TOGETHER) $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TOGETHER) $(PYTEST_ARGS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "The site is site/index.html; its search needs a server: python3 -m http.server -d site"

kernels: $(VENV)/.dev
	$(BIN)/python benchmarks/kernels.py --again
	$(BIN)/python benchmarks/render.py kernels

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '*.egg-info' -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
		"Python 3.11 or newer is needed and was not found; install it, or name it with PYTHON=/path/to/python" >&2; \
		exit 1; }
	@echo "Creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV) || { echo \
		"the virtual environment cannot be made; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@touch $@

# torch first: asked for by another package, pip might take a newest build with several GB of CUDA packages instead.
$(VENV)/.torch: constraints.txt | $(VENV)/.python
	@echo "Installing PyTorch (200 MB; a build for CUDA is much larger)"
	@$(PIP) $(TORCH_ARGS) torch==2.13.0
	@touch $@

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/.torch
	@echo "Installing amc"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.torch
	@echo "Installing amc and its development tools"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.core

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/.torch
	@echo "Installing amc and the tools of its documentation"
	@$(PIP) --editable '.[docs]'
	@touch $@ $(VENV)/.core
