# make papers    every table and figure of both papers from the shipped runs, in minutes: figures/
# make figures   every table and figure of both papers that is out of date: runs/<PROFILE>/
#                PROFILE=smoke|quick|long|full  SEEDS=3  REAL=<folder of the real sets>  FLAGS=<options of Snakemake>
# make ship      small copies of finished runs of the profiles long and full, to commit: runs/shipped/
# make report    Snakemake's own report of the graph: runs/<PROFILE>/report.html
# make test      every test: the notebooks (nbdev_test) and tests/ (pytest)
# make export    handlab/ from the notebooks; notebooks and tests cleaned and formatted
# make clean     remove the environment and the prepared data; runs/ and figures/ stay
# Each uses the active environment where it has the pinned versions (conda's, say), else builds .venv first, if needed.
PYTHON  ?= python3
PROFILE ?= quick
SEEDS   ?= 1
REAL    ?=
VENV    := .venv
SHELL   := /bin/bash
.DEFAULT_GOAL := help

# An environment that is active, other than .venv: it is taken as it is where .ci/pins.py finds the pinned versions.
ACTIVE  := $(filter-out $(CURDIR)/$(VENV),$(or $(VIRTUAL_ENV),$(CONDA_PREFIX)))
USED    := $(if $(filter 1,$(words $(ACTIVE))),$(shell "$(ACTIVE)/bin/python" .ci/pins.py && echo $(ACTIVE)))
BIN     := $(or $(USED),$(VENV))/bin
READY   := $(if $(USED),,$(VENV)/.ready)

# A misspelt variable would change nothing and say nothing: SEED=3 made one seed.
SETTINGS := PYTHON PROFILE SEEDS REAL FLAGS
UNKNOWN  := $(foreach name,$(.VARIABLES),$(if $(filter command line,$(origin $(name))),$(filter-out $(SETTINGS) SHELL MAKE%,$(name))))
NEAREST   = import difflib, sys; word, *known = sys.argv[1:]; print(*difflib.get_close_matches(word.upper(), known, 1))
MEANT     = $(shell $(PYTHON) -c '$(NEAREST)' '$(firstword $(UNKNOWN))' $(SETTINGS))
$(if $(strip $(UNKNOWN)),$(error $(firstword $(UNKNOWN)): there is no such variable; $(if $(MEANT),did you mean $(MEANT)? )choose one of $(SETTINGS)))

# The environment is other programs' as well, so what is near a setting there is noted and no error: SEED=3 make figures.
MISSPELT := SEED seed seeds PROFILES PROFIL profile REALS real FLAG flags
NOTE      = $(if $(filter environment,$(origin $(1))),$(warning $(1) of the environment changes nothing here; the settings are $(SETTINGS)))
$(if $(filter figures report,$(MAKECMDGOALS)),$(foreach name,$(MISSPELT),$(call NOTE,$(name))))

.PHONY: help environment papers figures ship report test export clean

help:
	@sed -n '1,9s/^# //p' Makefile

environment: $(READY)
	@echo "$(BIN)/python"

# The pins decide every version; the stamp is written last, so a broken-off installation is made again.
$(VENV)/.ready: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# Snakefile says what depends on what; FLAGS go to Snakemake, such as FLAGS=--dry-run.
# A folder may have any name: the shell gets it from the environment, as it was given.
export REAL_FOLDER := $(value REAL)
GRAPH = $(BIN)/python -m handlab.graph.run figures --profile $(PROFILE) --seeds $(SEEDS) $(if $(REAL_FOLDER),--real "$$REAL_FOLDER")
figures: $(READY)
	@$(GRAPH) $(FLAGS)

papers: $(READY)
	@$(BIN)/python -m handlab.graph.run papers $(FLAGS)

ship: $(READY)
	@$(BIN)/python -m handlab.results.ship

# What Snakemake knows of what is made: the graph of rules, their code, and when each run began and how long it took.
report: $(READY)
	@$(GRAPH) --report runs/$(PROFILE)/report.html
	@echo runs/$(PROFILE)/report.html

# One thread a worker: two notebooks at a time share two cores without their threads waiting on each other.
test: export OMP_NUM_THREADS := 1
test: $(READY)
	$(BIN)/nbdev_test --n_workers 2 --do_print --timing
	$(BIN)/python -m pytest --numprocesses 2 tests

export: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/ruff format --quiet .

clean:
	rm -rf $(VENV) data/prepared runs/*/data
