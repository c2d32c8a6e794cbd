# make            what there is to make
# make experiment-montecarlo PRESET=quick WORKERS=1,2 BACKENDS=serial,processes SEED=1
#
# On a fresh machine this needs CPython 3.11 or newer with pip and venv. If the active environment has
# parcompute, that one is used; otherwise .venv is made, once.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:            # two experiments at once would measure each other

# Each of these, if given, becomes an option of `parcompute run`: START_METHODS=fork is --start-methods fork.
OPTIONS := PRESET WORKERS NODES CLUSTER BACKENDS VARIANTS SCHEDULES START_METHODS BLAS_THREADS SCALING THREADS_PER_WORKER ROUNDS PRECISION BUDGET SEED RESULTS
# And these of `parcompute submit`, for submit-NAME.
SUBMIT := NODES TIME PARTITION ACCOUNT CPUS_PER_TASK ENGINE ARRAY
lower = $(subst _,-,$(shell echo '$(1)' | tr A-Z a-z))
options = $(foreach o,$(OPTIONS),$(if $($(o)),--$(call lower,$(o)) '$($(o))')) $(ARGS)

EXPERIMENTS := $(patsubst experiments/%.py,experiment-%,$(filter-out experiments/_%,$(wildcard experiments/*.py)))

# --- the environment: $(RUN) to run experiments, $(DEV) to test and check --------------------------------

PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# The active environment's python, if it has these packages.
active = $(shell env -u PYTHONPATH python -c 'import sys; from importlib.util import find_spec; \
	all(map(find_spec, sys.argv[1:])) and print(sys.executable)' $(1) 2>/dev/null)
RUN := $(call active,parcompute)
DEV := $(call active,parcompute pytest pytest_cov pytest_timeout xdist hypothesis ruff mypy)
BENCH := $(call active,parcompute dask distributed mpire ray)
DOCS := $(call active,parcompute sphinx furo myst_nb numpydoc sphinx_click)
RELEASE := $(call active,build twine)

RUN_READY := $(if $(RUN),,.venv/.ready)
DEV_READY := $(if $(DEV),,.venv/.ready-dev)
BENCH_READY := $(if $(BENCH),,.venv/.ready-bench)
DOCS_READY := $(if $(DOCS),,.venv/.ready-docs)
RELEASE_READY := $(if $(RELEASE),,.venv/.ready-dev)
RUN := $(or $(RUN),.venv/bin/python)
DEV := $(or $(DEV),.venv/bin/python)
BENCH := $(or $(BENCH),.venv/bin/python)
DOCS := $(or $(DOCS),.venv/bin/python)
RELEASE := $(or $(RELEASE),.venv/bin/python)

# The code of this checkout runs, also where the environment has another version installed.
export PYTHONPATH := $(CURDIR)/src$(if $(PYTHONPATH),:$(PYTHONPATH))
PARCOMPUTE := $(dir $(RUN))parcompute

# The mark is made last, so a set-up that was interrupted is known by .unfinished and begins anew.
.venv/.ready .venv/.ready-dev .venv/.ready-bench .venv/.ready-docs: pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "parcompute needs CPython 3.11 or newer, found: $(or $(PYTHON),none); pass PYTHON=/path/to/python3" >&2; exit 2; }
	@if test -e .venv/.unfinished; then rm -rf .venv; fi
	@echo "setting up .venv with $(PYTHON) ..."
	@mkdir -p .venv && touch .venv/.unfinished
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --quiet --disable-pip-version-check --editable '.$(patsubst .ready-%,[%],$(filter .ready-%,$(@F)))' \
	  || { rm .venv/.unfinished; exit 1; }   # pip takes back what it could not finish
	@rm .venv/.unfinished && touch $@

# --- experiments -------------------------------------------------------------------------------------------

.PHONY: $(EXPERIMENTS) experiments figures
$(EXPERIMENTS): experiment-%: experiments/%.py $(RUN_READY)
	@$(PARCOMPUTE) run $< $(options)

experiment-%:            ## run experiments/%.py, record it in results/, draw its figures
	@echo "there is no experiments/$*.py; there are: $(EXPERIMENTS:experiment-%=%)" >&2; exit 2

experiments: PRESET ?= quick
experiments: $(EXPERIMENTS)   ## run all experiments, PRESET=quick unless given

figures: $(RUN_READY)    ## draw all figures again from results/**/*.h5 alone
	@find results -name '*.h5' -exec $(PARCOMPUTE) plot --conditions newest {} +

submit-%: experiments/%.py $(RUN_READY)   ## submit experiments/%.py to Slurm: NODES=1,2,4 TIME=30:00 …; ARGS pass through
	@$(PARCOMPUTE) submit $< $(foreach o,$(SUBMIT),$(if $($(o)),--$(call lower,$(o)) '$($(o))')) $(options)

# --- the project -------------------------------------------------------------------------------------------

.PHONY: test test-slurm stress coverage check docs docs-links bench noisy release clean help
test: $(DEV_READY)       ## run the tests; ARGS='-k shared -x' passes through
	@$(DEV) -m pytest -n 2 $(ARGS)

test-slurm: $(DEV_READY) ## run all tests on a Slurm of their own (root; slurm-wlm, munge, iproute2), for 20 minutes
	@$(DEV) -m pytest -n 0 -m slurm tests/cluster $(ARGS)

stress: $(DEV_READY)     ## kill 10,000 times at random, flood and repeat, for about an hour; ARGS='NODE' runs one piece
	@$(DEV) -m pytest -m stress $(ARGS)

coverage: $(DEV_READY)   ## run the tests and report what they reach, worker processes included
	@$(DEV) -m pytest --cov $(ARGS)

check: $(DEV_READY)      ## lint, formatting, types (a user's program, too; pyright reads that in the tests)
	@$(DEV) -m ruff check .
	@$(DEV) -m ruff format --check .
	@$(DEV) -m mypy

docs: $(DOCS_READY)      ## build the site into build/docs: every notebook runs, a warning is an error
	@rm -rf build/docs
	@$(DOCS) -m sphinx -W --keep-going -n -q -E -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

docs-links: $(DOCS_READY) ## ask the network for the pages of others that the site links to
	@$(DOCS) -m sphinx -q -D nb_execution_mode=off -b linkcheck -d build/doctrees-links docs build/links

bench: $(BENCH_READY)    ## measure against other engines, record and print the table; ARGS='--row 1' passes through
	@$(BENCH) benchmarks/bench.py $(ARGS)

noisy: $(DEV_READY)      ## simulate machines that drift and are stolen from: how often intervals hold, and how wide they are
	@$(DEV) benchmarks/noisy.py $(ARGS)

# The trial: what `pip install` gives somebody without this checkout runs an experiment, and reads its record.
release: $(RELEASE_READY)   ## build sdist and wheel into dist/, check them, try the wheel in an empty environment
	@rm -rf dist
	@$(RELEASE) -m build
	@$(RELEASE) -m twine check --strict dist/*
	@wheel=$$(realpath dist/*.whl) && trial=$$(mktemp -d) && trap 'rm -rf "$$trial"' EXIT && cd "$$trial" && \
	  unset PYTHONPATH && $(abspath $(RELEASE)) -m venv env && env/bin/pip install --quiet "$$wheel" && \
	  env/bin/parcompute --version && env/bin/parcompute machine >/dev/null && env/bin/parcompute new trial && \
	  env/bin/parcompute run experiments/trial.py --preset quick --rounds 1 --workers 1,2 --backends serial,threads,processes \
	    --results results && env/bin/parcompute show results/trial.h5 >/dev/null && echo "$$wheel: its trial went well"

clean:                   ## remove what tools leave behind; results/ and .venv stay
	@rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find src tests experiments benchmarks -name __pycache__ -exec rm -rf {} +

help:                    ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile
	@echo "experiments: $(EXPERIMENTS:experiment-%=%)"
