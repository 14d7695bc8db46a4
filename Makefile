# Everything from a bare machine: `make train` and `make test` each set the environment up first.
# Needs Python 3.11 to 3.13, make and git. `make help` lists the commands.

# The first of these that runs and is of a supported version; `make PYTHON=/path/to/python3 train` names another.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell \
	$(p) -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1 && echo $(p))))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --require-hashes --quiet
ARGS ?=
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help train test test-all lint format lock bench bench-sweep gallery clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

train: $(VENV)/.runtime  ## train the default model (digits, mlp); ARGS="model=cnn data=mnist" passes arguments on
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.dev  ## run the tests (under 3 minutes on 2 cores, no network); ARGS="tests/lab/runs" runs those of one room
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-all: $(VENV)/.dev  ## run every test, those that take minutes too
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## mend style and format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.dev  ## renew the pinned requirements from pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade $(LOCK) pyproject.toml --output-file requirements.txt
	$(BIN)/uv pip compile --quiet --upgrade $(LOCK) --all-extras --constraint requirements.txt pyproject.toml --output-file requirements-dev.txt

LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header

clean:  ## remove the environment and caches (data and experiments stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 (with venv) found; install one, or: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of requirements: installing happens once, and again only when a requirements file changes.
$(VENV)/.runtime: requirements.txt | $(BIN)/python
	@echo "Installing the pinned requirements into $(VENV) (several GB with CUDA; some minutes the first time)"
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt | $(BIN)/python
	@echo "Installing the pinned development requirements into $(VENV) (several GB with CUDA; some minutes the first time)"
	$(PIP) -r requirements-dev.txt
	@touch $@ $(VENV)/.runtime

bench: $(VENV)/.dev  ## measure training against a bare loop, PyTorch's example and Lightning (MNIST in data/ or DATA_ROOT)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/growth.py

bench-sweep: $(VENV)/.runtime  ## measure a sweep against one command after the other
	$(BIN)/python benchmarks/sweep.py

gallery: $(VENV)/.runtime  ## draw the pictures of docs/ anew (MNIST in data/ or DATA_ROOT)
	$(BIN)/python train.py experiment=survival name=gallery_survival
	$(BIN)/python train.py experiment=regression name=gallery_regression
	$(BIN)/python train.py experiment=gaussians name=gallery_gaussians
	$(BIN)/python train.py experiment=save_restore name=gallery_save_restore
	$(BIN)/python train.py experiment=optimizers name=gallery_optimizers
	$(BIN)/python train.py experiment=mnist_cnn name=gallery_mnist_cnn
	$(BIN)/python evaluate.py run=$(call LATEST,mnist_cnn)
	$(BIN)/python train.py -m model=mlp,cnn optimizer.lr=1e-3,1e-2 seed=0,1,2 name=gallery_lr_study trainer.epochs=8
	$(BIN)/python synthesize_results.py root=experiments/gallery_lr_study
	cp experiments/gallery_survival/survival*.png experiments/gallery_survival/survival*.gif docs/
	cp experiments/gallery_optimizers/losses.png experiments/gallery_save_restore/restored_curves.png docs/
	cp experiments/gallery_lr_study/results_rows.png docs/
	cp $(call LATEST,regression)/fitted_curve.gif $(call LATEST,gaussians)/class_regions.gif docs/
	cp $(call LATEST,mnist_cnn)/embedding.gif $(call LATEST,mnist_cnn)/mistakes.png docs/

LATEST = $$(ls -d experiments/gallery_$(1)/* | tail -1)
