# Every target sets up what it needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo up test test-slow test-gpu lint types imports ci bench bench-serving bench-jobs bench-overload bench-memory bench-swaps bench-large bench-training bench-compress bench-peers quality migrate lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install into .venv, at the locked versions

# torch first and alone: a loose requirement on it can pull several GB of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AI Mass needs Python 3.11 or newer; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[gateway,worker,dev]'
	touch $(STAMP)

demo: $(STAMP) ## real data to a compressed model behind an endpoint, and a table of what came out
	$(BIN)/python docs/demo.py

up: $(STAMP) ## run the platform until Ctrl-C
	$(BIN)/aimass up

# In two processes, whose threads must not spin for each other's cores; where the test itself learns, one thread each.
test: $(STAMP) ## the whole test suite, with real servers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal tests/unit tests/architecture
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile tests/acceptance tests/integration tests/contract tests/faults

test-slow: $(STAMP) ## what takes long and is left out of `make test`
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m slow tests

test-gpu: ## the tests of training and serving on a GPU, in an environment with torch and onnxruntime-gpu for CUDA
	$(PYTHON) -m pytest -m gpu tests

lint: $(STAMP) ## ruff, every rule on
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

imports: $(STAMP) ## who may import whom
	$(BIN)/lint-imports

ci: ## what CI runs
	bash .ci/run

bench: bench-serving bench-jobs ## every benchmark that fits in minutes; ratios in one run

bench-serving: $(STAMP) ## prediction speed against a plain server and the raw limits (needs wrk)
	$(BIN)/python bench/serving.py

bench-jobs: $(STAMP) ## the queue and the lists (needs wrk)
	$(BIN)/python -m bench.jobs

bench-overload: $(STAMP) ## four times the load that the platform can answer
	$(BIN)/python -m bench.overload

bench-memory: $(STAMP) ## memory over 200 cycles of loading and unloading a model
	$(BIN)/python -m bench.memory

bench-swaps: $(STAMP) ## p99 while an endpoint's version changes (needs wrk)
	$(BIN)/python -m bench.swaps

bench-large: $(STAMP) ## memory and speed of trainings on 20 million rows
	$(BIN)/python -m bench.large

bench-training: $(STAMP) ## speed of trainings beside the same ones written by hand
	$(BIN)/python -m bench.training

# Hours: it trains six models first. `python -m bench.compress --quick` is minutes.
bench-compress: $(STAMP) ## compressed models beside plain quantizers
	$(BIN)/python -m bench.compress

# About 10 minutes for the environments at first (5 GB), then 45; `python -m bench.peers ours` is 8 of them.
bench-peers: $(STAMP) ## prediction speed beside other model servers, each installed on demand (needs wrk, Java 17)
	$(BIN)/python -m bench.peers

quality: $(STAMP) ## scores on ../shared/data against the references
	$(BIN)/python -m bench.quality

migrate: $(STAMP) ## bring the registry's schema up to date
	$(BIN)/aimass migrate

# A fresh environment, so that nothing installed by hand gets in; local version labels (+cpu) are cut.
lock: ## make constraints.txt anew from pyproject.toml
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-lock/bin/python -m pip install --quiet --editable '.[gateway,worker,dev]'
	(echo '# Made by `make lock`.'; $(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//') > constraints.txt
	rm -rf $(VENV)-lock

clean: ## remove what the targets have made
	rm -rf $(VENV) .data .bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
