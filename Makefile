# All that a developer or CI runs. A fresh machine needs Python >= 3.11 and make; no root, no Docker, no Java.
# Everything made here stays in .venv/ and .pipeline/; after the first run no target needs the network.

VENV  := .venv
BIN   := $(VENV)/bin
# The first of these that is new enough; PYTHON=... names another one.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
SEEDS ?= 200
PIP    = $(BIN)/python -m pip --disable-pip-version-check --quiet
# One lock for every platform, with hashes and no address in it.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate $(UPGRADE)
# uv installs the same locked wheels as pip, checked against the same hashes, in 2 s instead of 15. It does not
# read pip's configuration: where that names an index of its own, and where uv fails, pip does it.
define install
	@if $(PIP) config list | grep -q index-url \
	|| ! $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r $(1); \
	then $(PIP) install --no-deps --require-hashes -r $(1); fi
	@touch $@
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-dev demo test lint format lock proto bench faults keys-test up down status clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.project  ## .venv with what the pipeline runs on
setup-dev: $(VENV)/.dev  ## ... and with what tests, lint and lock need

demo: setup  ## the whole way once, from a fresh clone: local stack, events, balance, query
	@$(BIN)/pipeline demo

test: lint  ## lint, then every test, with a real broker
	@$(BIN)/python -m pytest $(ARGS)

lint: setup-dev  ## ruff, formatting, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy

format: setup-dev  ## format the code, mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: setup-dev  ## connectors/wire anew from schemas/*.proto
	@$(BIN)/python -m grpc_tools.protoc -I schemas --python_out=connectors/wire --pyi_out=connectors/wire schemas/*.proto

bench: setup-dev  ## the measurements behind the figures (ARGS=...)
	@$(BIN)/python -m loadtest $(ARGS)

faults: setup-dev  ## the long campaign of kills and outages (SEEDS=200)
	@SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/faults $(ARGS)

keys-test: setup-dev  ## the transit adapter on a real Vault or OpenBao (built once with Go when there is none)
	@PIPELINE_BUILD_TOOLS=1 $(BIN)/python -m pytest tests/contract/transit_server.py $(ARGS)

up: setup  ## start the local stack
	@$(BIN)/pipeline up

down: setup  ## stop it
	@$(BIN)/pipeline down

status: setup  ## what runs, lag, balance
	@$(BIN)/pipeline status

clean:  ## stop the stack; remove state and caches, keep .venv and the broker's jars
	@if [ -x $(BIN)/pipeline ] && [ -d .pipeline/run ]; then $(BIN)/pipeline down; fi
	@if [ -d .pipeline ]; then find .pipeline -mindepth 1 -maxdepth 1 ! -name jars -exec rm -rf {} +; fi
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## ... and remove those too
	@rm -rf $(VENV) .pipeline

lock: $(VENV)/.build  ## write the locks anew from pyproject.toml (UPGRADE=--upgrade)
	@$(COMPILE) --group build --output-file requirements-build.lock
	@$(COMPILE) pyproject.toml --output-file requirements.lock
	@$(COMPILE) pyproject.toml --group dev --output-file requirements-dev.lock \
		--constraint requirements.lock --constraint requirements-build.lock

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "Python >= 3.11 is needed and not on PATH; PYTHON=/path/to/python names one." >&2; exit 2; }
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.build: requirements-build.lock | $(BIN)/python
	@$(PIP) install --no-deps --require-hashes -r $<
	@touch $@

$(VENV)/.runtime: requirements.lock $(VENV)/.build
	@echo "installing the locked packages"
	$(call install,$<)

$(VENV)/.project: pyproject.toml $(VENV)/.runtime
	@$(PIP) install --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.project
	@echo "installing the locked packages of tests and lint"
	$(call install,$<)
