# Everything this project does, on a machine with Python 3.10 or newer, Node with npm, and make.
# Each target sets up what it needs. `make help` lists them.

PYTHON ?= python3
VENV   ?= .venv
STACKS ?= httpx httpx2 httpx2-sync aiohttp requests anyio-asyncio anyio-trio
EXTRAS ?= aiohttp,httpx,httpx2,requests,keyring,vault,redis,cli
PYTEST ?= $(VENV)/bin/python -m pytest
TESTS  ?= tests
SEEDS  ?= 20000
FIRST  ?= 0
KILLS  ?= 200
SECONDS ?= 180

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup parts ecosystem test test-cov unit lint format typecheck security check conformance demo simulate kills scale sdk fleet mutation clean

help: ## list the targets
	@sed -n 's/^\([a-z_. -]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/.ready node_modules/.ready ## the Python environment and the npm packages, up to date

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'Python 3.10 or newer is needed: make PYTHON=/path/to/python3.12 …' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo 'Python has no venv: sudo apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(VENV)/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]' --group test --group lint
	@touch $@

parts: ## the real servers that come from the system's packages
	@.ci/parts

ecosystem: $(VENV)/.ready ## the environments of programs that need other versions: SDK 1.x, FastMCP, pydantic-ai, langchain
	$(VENV)/bin/python -m tests.ecosystem.environments

node_modules: node_modules/.ready ## the npm packages: real servers, the conformance suite, Node 22
node_modules/.ready: package.json package-lock.json
	@command -v npm >/dev/null || { echo 'npm is missing: sudo apt-get install npm' >&2; exit 1; }
	npm ci --loglevel=error
	@touch $@

check: lint security test ## all that a change must pass, but the conformance suite

test test-cov: setup parts ecosystem ## every test, with coverage
	$(PYTEST) --cov --cov-report=term

unit: $(VENV)/.ready parts ## the quick tests of TESTS, by default all, that need nothing from npm
	$(PYTEST) $(TESTS) --ignore=tests/integration --ignore=tests/force --ignore=tests/ecosystem -m 'not slow'

lint: typecheck ## formatting, style, types (mypy and pyright), the layers
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports

typecheck: $(VENV)/.ready ## types alone
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright

security: $(VENV)/.ready ## the rules of bandit
	$(VENV)/bin/ruff check --select S src

format: $(VENV)/.ready ## put the code into the project's form
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

conformance: setup ## the official suite, strictly, through each of STACKS
	$(VENV)/bin/python -m tests.conformance.run $(STACKS:%=--stack %)

simulate: $(VENV)/.ready ## simulate SEEDS runs of processes, servers and faults, then find the planted mistakes
	$(VENV)/bin/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)
	$(VENV)/bin/python -m tests.simulation --planted

kills: setup parts ## kill KILLS processes during renewals, on each store, with grace and without
	MCP_OAUTH_KILLS=$(KILLS) $(PYTEST) tests/force/test_kills.py --timeout=1800

scale: setup ## 10 to 10,000 grants in one process: memory, headers, a renewal storm
	$(VENV)/bin/python -m benchmarks.scale

sdk: setup ## 50 concurrent tool calls through the official SDK: without OAuth, with its own, with ours
	$(VENV)/bin/python -m benchmarks.sdk

fleet: setup parts ## 8 processes, one Redis and 1,000 grants for SECONDS, with kills and restarts
	$(VENV)/bin/python -m benchmarks.fleet --seconds $(SECONDS)

mutation: $(VENV)/.ready ## mutation-test the core (a quarter of an hour); what survives is listed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --group mutation
	$(VENV)/bin/mutmut run
	$(VENV)/bin/mutmut results

demo: setup ## a login to a real server, narrated
	$(VENV)/bin/python -m examples.demo

clean: ## remove what was built and installed
	rm -rf $(VENV) .venvs node_modules build dist .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
