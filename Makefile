PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test lint bench nightly clean

## Run the main job offline: plant a backdoor in a digit classifier, purify it, write the report.
demo: $(INSTALLED)
	$(BIN)/polarizer demo --out runs/demo

## Lint, types and tests.
test: lint
	$(BIN)/python -m pytest

## All measurements of speed, and their pictures in docs/pictures; needs a quiet machine and time.
bench: $(INSTALLED)
	mkdir -p runs/bench
	for name in plain ceiling scaling memory; do \
		$(BIN)/python benchmarks/npd_speed.py $$name --json runs/bench/$$name.json || exit 1; done
	$(BIN)/python benchmarks/npd_speed.py fast --width 16 --json runs/bench/fast.json
	$(BIN)/python benchmarks/inference_cost.py --json runs/bench/inference.json
	$(BIN)/python benchmarks/performance_plots.py --results runs/bench --out docs/pictures

## What takes too long for every change: all attacks against all defenses at toy scale, and their report.
nightly: test
	$(BIN)/polarizer bench run smoke --out runs/smoke
	$(BIN)/polarizer bench report smoke --results runs/smoke --out runs/site

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
