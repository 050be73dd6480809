.DEFAULT_GOAL := help
PYTHON ?= python3
THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
LAUNCH := .venv/bin/accelerate launch --num_machines 1 --num_processes 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $(THREADS)

.PHONY: help install train test test-slow test-gpu smoke quality style cards build

help:  ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: .venv/installed  ## Create .venv with everything to train and to develop

train: .venv/installed  ## Train a small model on the embedded scenes in minutes, and show what it sees
	$(LAUNCH) scripts/train.py --config scripts/configs/quickstart.yaml

test: .venv/installed  ## Run the tests: CPU, offline, under three minutes
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed  ## Run the slow tests too
	.venv/bin/python -m pytest -m "not gpu and not benchmark"

test-gpu: .venv/installed  ## Run the tests that need a CUDA device
	.venv/bin/python -m pytest -m gpu

smoke: .venv/installed  ## Train 4 steps, evaluate, save, reload and resume
	.venv/bin/python -m pytest -q tests/test_scripts.py

quality: .venv/installed  ## Check formatting and style, changing nothing
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

style: .venv/installed  ## Mend formatting and style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

cards: .venv/installed  ## Render the model cards and recipes anew
	.venv/bin/python scripts/render_cards.py

build: .venv/installed  ## Build the sdist and the wheel into dist/, and check them
	rm -rf build dist
	.venv/bin/python -m build
	.venv/bin/twine check --strict dist/*
