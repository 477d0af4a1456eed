PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DOCS := .venv-docs
LOWEST := runs/lowest
FAST := tests/checkpoints tests/data tests/report tests/test_bad_input.py tests/test_cli.py tests/test_metrics.py
# Of the last commit, so that everybody who builds it gets the same bytes; without git, that of hatchling's own default.
export SOURCE_DATE_EPOCH := $(or $(shell git log -1 --format=%ct 2>/dev/null),1580601600)

.PHONY: demo check test lint bench nightly docs dist dist-check release audit lowest clean

## Run the main job offline: plant a backdoor in a digit classifier, purify it, write the report.
demo: $(INSTALLED)
	$(BIN)/polarizer demo --out runs/demo

## For every change: lint, types, and the tests that take less than a second and no process of their own.
check: lint
	$(BIN)/python -m pytest -m "not slow and not process and not long" --numprocesses auto --maxprocesses 4 --dist loadfile

## Lint, types and tests, these on up to four cores at once.
test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

## All measurements of speed, and their pictures in docs/pictures; needs a quiet machine and time.
bench: $(INSTALLED)
	mkdir -p runs/bench
	for name in plain ceiling scaling memory; do \
		$(BIN)/python benchmarks/npd_speed.py $$name --json runs/bench/$$name.json || exit 1; done
	$(BIN)/python benchmarks/npd_speed.py whole --width 16 --json runs/bench/whole.json
	$(BIN)/python benchmarks/inference_cost.py --json runs/bench/inference.json
	$(BIN)/python benchmarks/performance_plots.py --results runs/bench --out docs/pictures

## What takes too long for every change: all attacks against all defenses at toy scale, and their report.
nightly: test lowest docs
	$(BIN)/python -m pytest -m slow
	NEURAL_POLARIZER_EXAMPLES=new $(BIN)/python -m pytest -m "not process"
	$(BIN)/polarizer bench run smoke --out runs/smoke
	$(BIN)/polarizer bench report smoke --results runs/smoke --out runs/site
	$(MAKE) audit

## The documentation, into runs/site-docs; fails on any warning.
docs: $(INSTALLED) $(DOCS)/installed
	$(BIN)/python .ci/cli_reference.py docs/reference/cli.md
	$(BIN)/python .ci/import_picture.py docs/explanation/architecture.md
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict

$(DOCS)/installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet $$($(BIN)/python .ci/requirements.py docs)
	touch $@

## The source distribution and the wheel, into dist/.
dist: $(INSTALLED)
	rm -f dist/*.tar.gz dist/*.whl
	$(BIN)/python -m hatchling build --directory dist

## Whether both come out the same, byte for byte, when built again, hold what they should, and install; part of make test.
dist-check: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_distribution.py

## A release from a tag, into dist/TAG: source distribution, wheel, SBOM and hashes (RELEASING.md).
release: $(INSTALLED)
	$(BIN)/python .ci/release.py "$(TAG)" "dist/$(TAG)"

## What is installed: a list of it (CycloneDX) in dist/, and known vulnerabilities. Needs the network; fails without it.
audit: $(INSTALLED)
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
		--output-file dist/sbom.cdx.json $(BIN)/python
	$(BIN)/python -m pip list --format freeze --exclude-editable > dist/installed.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement dist/installed.txt || { \
		echo "audit: FAILED: there are known vulnerabilities, or the service that knows them gave no answer;" \
			"the lines above say which, and dist/sbom.cdx.json what is installed" >&2; exit 1; }

## The fast tests with the lowest versions that pyproject.toml allows; torch stays as it is installed. Needs an index.
lowest: $(INSTALLED)
	$(PYTHON) -m venv --clear --without-pip $(LOWEST)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		"$$($(LOWEST)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/everything_else.pth"
	$(BIN)/python .ci/requirements.py --lowest cli zoo demo bench > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --requirement $(LOWEST)/lowest.txt || { \
		echo "lowest: FAILED: pip reached no index, or pyproject.toml allows a version that nobody can install" >&2; exit 1; }
	PYTHONPATH=src $(LOWEST)/bin/python -m pytest -o addopts= -o filterwarnings= -q $(FAST)

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
	rm -rf $(VENV) $(DOCS) runs
