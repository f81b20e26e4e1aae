# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What was tested; LOCK= (empty) installs the newest versions that pyproject.toml admits.
LOCK ?= requirements.lock
STAMP := $(VENV)/.installed

.PHONY: help setup install demo tune test test-slow chaos lint peers bench clean

help:
	@echo "make demo       train a demo model on synthetic pairs (installs what it needs first)"
	@echo "make test       the fast tests and all checks"
	@echo "make test-slow  kills, several workers, long training"
	@echo "make tune       search the masking ratios on synthetic pairs"
	@echo "make chaos      a search under 100 kills, an ingest under 20"
	@echo "make bench      the benchmarks and a table of their figures beside the targets"
	@echo "make peers      what the stream is compared with, for make bench"
	@echo "make setup      only the virtual environment"
	@echo "make install    the same without the tools of development, for machines of a cluster"

setup: $(STAMP)

$(STAMP): pyproject.toml $(wildcard $(LOCK))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar off $(if $(LOCK),--constraint $(LOCK)) --editable '.[dev]'
	@touch $(STAMP)

# What a machine of a cluster needs: no tools of development.
install: $(VENV)/.installed-to-run

$(VENV)/.installed-to-run: pyproject.toml $(wildcard $(LOCK))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar off $(if $(LOCK),--constraint $(LOCK)) --editable .
	@touch $@

demo: setup
	$(BIN)/python -m orchestration.pretrain --config recipes/demo.yaml --name demo

tune: setup
	$(BIN)/python -m orchestration.tune --space search_spaces/masking.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGUMENTS)

test-slow: setup
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGUMENTS)

chaos: setup
	MPMA_CHAOS_KILLS=100 $(BIN)/python -m pytest tests/orchestration/test_tune_kills.py \
		tests/orchestration/test_ingest_kills.py $(PYTEST_ARGUMENTS)

# MosaicML Streaming asks for older transformers and numpy than it needs: it comes without its dependencies.
peers: setup
	$(BIN)/python -m pip install --quiet --progress-bar off $(if $(LOCK),--constraint $(LOCK)) --editable '.[peers]'
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps 'mosaicml-streaming>=0.13,<0.14' \
		$(if $(LOCK),--constraint $(LOCK))

bench: setup
	$(BIN)/python -m benchmarks $(BENCH_ARGUMENTS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
