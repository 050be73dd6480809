.DEFAULT_GOAL := help
PYTHON ?= python3

.PHONY: help install train test test-oldest test-slow test-gpu smoke quality style gpu-pack cards build

help:  ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: .venv/installed  ## Create .venv with everything for training and development

# Threads that wait sleep instead of spinning, and freed memory is kept; see "On a CPU" in docs/train.md. THREADS=1 uses one thread.
train: export OMP_WAIT_POLICY ?= PASSIVE
train: export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
train: export MALLOC_TRIM_THRESHOLD_ ?= 4294967296
ifdef THREADS
train: export OMP_NUM_THREADS := $(THREADS)
endif
train: .venv/installed  ## Train a small model on rendered scenes in minutes, and draw its predictions
	.venv/bin/transformers-sem train --config quickstart

test: .venv/installed  ## Run the tests: CPU, offline, about five minutes on two cores
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.venv-oldest/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --editable '.[heic]' 'pytest>=8.0' 'pytest-xdist>=3.7'
	touch $@

OLDEST_TESTS = backbone_timm configuration_sem image_files image_processing_sem modeling_sem pipeline_sem standard_pipelines
test-oldest: .venv-oldest/installed  ## Run tests of the model with the oldest requirements that setup.cfg allows
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q --numprocesses 2 $(OLDEST_TESTS:%=tests/test_%.py)

test-slow: .venv/installed  ## Run the slow tests too
	.venv/bin/python -m pytest -m "not gpu and not benchmark"

test-gpu: .venv/installed  ## Run the tests that need a CUDA device
	.venv/bin/python -m pytest -m gpu

smoke: .venv/installed  ## Run the tests of a training run of a few steps
	.venv/bin/python -m pytest -q tests/cli/test_train.py

quality: .venv/installed  ## Check formatting and style without changes
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

style: .venv/installed  ## Fix formatting and style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

gpu-pack: .venv/installed  ## Write .gpu_pack, which measures SEM on a GPU machine without a network (DATA=folder NYUDv2)
	.venv/bin/python scripts/gpu_pack/build.py $(DATA)

cards: .venv/installed  ## Render the model cards
	.venv/bin/transformers-sem cards

build: .venv/installed  ## Build the sdist and the wheel in dist/, and check them
	rm -rf build dist
	.venv/bin/python -m build
	.venv/bin/twine check --strict dist/*
