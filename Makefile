# make demo    run the demonstration service under load, with the agent on
# make check   everything CI runs
# make help    the rest

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo check lint types imports test test-others dashboards system bench format clean

help: ## list what make can do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml agent/loopscope/_version.py
	@test -n "$(PYTHON)" || { echo "loopscope needs Python 3.11 or newer on the PATH"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	touch $@

demo: $(STAMP) ## the demonstration: real service, real PostgreSQL, real load (ARGS=--serve keeps it up)
	$(BIN)/python -m demo_app $(ARGS)

check: $(STAMP) system ## everything CI runs
	@tools/test_other_pythons --install & installing=$$!; \
	$(MAKE) lint types imports dashboards; checked=$$?; \
	wait $$installing && exit $$checked
	@tools/test_other_pythons & others=$$!; \
	$(MAKE) test; tested=$$?; \
	wait $$others && exit $$tested

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy agent/loopscope demo_app bench dashboards tests
	$(BIN)/pyright

imports: $(STAMP)
	$(BIN)/lint-imports

dashboards: $(STAMP)
	$(BIN)/python -m dashboards.generate --check

system: ## Debian packages the tests use (Prometheus, MariaDB, Redis)
	tools/install_system_packages

# Tests start some 300 Pythons; where they are told to write no bytecode, each would compile it all.
test: $(STAMP) system
	$(BIN)/python -m compileall -q agent demo_app tests/e2e
	$(BIN)/coverage erase
	tools/run_suite $(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-others: system ## all tests again on every other Python that is installed
	tools/test_other_pythons --all

bench: $(STAMP) ## what a request costs, beside the peers
	$(BIN)/python bench/overhead.py $(ARGS)

format: $(STAMP) ## let ruff write
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove environments and caches
	rm -rf .venv* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist .coverage*
