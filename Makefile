# `make demo` is the place to start. Every target sets up what it needs; the second time that is instant.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
# pip does not compile the 13,000 files it installs (that takes longer than installing them): Python keeps
# the compiled form of those it really imports, unless this variable forbids it.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -q
PEERS := build/trl-venv/bin/python
PEER_TESTS := tests/objectives tests/tuners tests/models

.PHONY: help setup demo test test-full test-peers lint format nano nano-digits support reference docs clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.dev-installed  ## virtual environment in .venv with pinned dependencies and the developer's tools

demo: $(VENV)/.installed  ## fine-tune a 135M-parameter model by three methods and compare them (under 10 minutes)
	$(BIN)/luthier compare quickstart

test: setup  ## lint and all quick tests (under 10 minutes on 2 cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 -m "not slow"

test-full: setup  ## every test, slow ones too
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --hypothesis-profile=slow

test-peers: setup  ## loss and gradients beside TRL, PEFT and torch, with how far apart they are (makes build/trl-venv once)
	$(BIN)/python -c 'import sys; sys.path.insert(0, "bench"); import beside_trl; beside_trl.trl_environment()'
	$(PEERS) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt pytest hypothesis pydantic rich typer
	OMP_NUM_THREADS=1 $(PEERS) -m pytest -q -rP -m peers $(PEER_TESTS) > build/peers.txt || { cat build/peers.txt; exit 1; }
	@grep -E 'gradient [0-9]|weights [0-9]|passed' build/peers.txt

lint: setup  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup  ## put the code into the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

nano: setup  ## train our own tiny language model again and put its weights into the package
	rm -rf build/nano
	$(BIN)/luthier run nano --out build
	$(BIN)/python -m luthier.models.loading.install build/nano/1/model nano

nano-digits: setup  ## train our own tiny denoiser again and put its weights into the package
	rm -rf build/nano-digits
	$(BIN)/luthier run nano-digits --out build
	$(BIN)/python -m luthier.models.loading.install build/nano-digits/1/model nano-digits

support: setup  ## try what works with what and write docs/support.md again (some minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m luthier.conformance.support_page > docs/support.md.new
	mv docs/support.md.new docs/support.md
	$(BIN)/python -m luthier.steps.verb_page docs/pipelines.md

reference: setup  ## write docs/reference/ and the option tables of docs/ again, from descriptions in the code
	$(BIN)/python -m luthier.cli.reference docs
	$(BIN)/python -m luthier.recipe.reference > docs/reference/recipe.md.new
	mv docs/reference/recipe.md.new docs/reference/recipe.md
docs: $(VENV)/.docs-installed  ## build the documentation's site into build/site; a broken link ends it
	$(BIN)/zensical build --clean --strict
	@echo "build/site/index.html"

clean:  ## remove the environment and what was built; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Luthier needs Python 3.11 or newer. Name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned dependencies into $(VENV): a few minutes the first time."
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned dependencies into $(VENV): a few minutes the first time."
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.docs-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) zensical
	@touch $@
