# make figures   the environment (if needed), then what is out of date of both papers: runs/<PROFILE>/..., figures/; REAL=<folder>: on the real sets in it
# make test      the environment (if needed), then every test: the notebooks (nbdev_test) and tests/ (pytest)
# make clean     forget the environment and what was prepared; runs/ and figures/ stay
PYTHON  ?= python3
PROFILE ?= quick
SEEDS   ?= 1
REAL    ?=
VENV    := .venv
READY   := $(VENV)/.ready
BIN     := $(VENV)/bin
SHELL   := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help environment figures test export clean

help:
	@sed -n '1,3s/^# //p' Makefile

environment: $(READY)

# The pins decide every version; the stamp is written last, so a broken-off installation is made again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# Snakefile says what depends on what; FLAGS go to Snakemake, such as FLAGS=--dry-run.
figures: $(READY)
	@$(BIN)/python -m handlab.graph.run figures --profile $(PROFILE) --seeds $(SEEDS) $(if $(REAL),--real "$(REAL)") $(FLAGS)

# One thread a worker: two notebooks at a time share two cores without their threads waiting on each other.
test: export OMP_NUM_THREADS := 1
test: $(READY)
	$(BIN)/nbdev_test --n_workers 2 --do_print --timing
	$(BIN)/python -m pytest --numprocesses 2 tests

export: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

clean:
	rm -rf $(VENV) data/prepared runs/*/data
