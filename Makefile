# A fresh machine needs Python 3.11, pip and make. `make demo` and `make test` set up .venv themselves.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
BUNDLE := build/quickstart.bundle
# Copies of the photographs that scikit-image and scikit-learn ship.
PHOTOGRAPHS := build/photographs

.PHONY: demo test test-aot check wheel wheel-test clean

demo: $(BUNDLE) $(PHOTOGRAPHS)
	$(BIN)/vsa-rt run $(BUNDLE) $(PHOTOGRAPHS) --format table
	$(BIN)/python -m vsa_rt.bench.demo $(BUNDLE)

test: .venv/.dev
	$(BIN)/python -m pytest

# Whole ensembles through TensorRT's compiler, ahead of time and without a GPU: the second CI job.
test-aot: .venv/.dev
	$(BIN)/python -m pytest -m aot

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: .venv/.dev
	rm -rf build/lib build/bdist* dist
	$(BIN)/python -m build --wheel --outdir dist .

# The built wheel in an empty environment without torch: recipes are there, a bundle runs.
wheel-test: wheel $(BUNDLE) $(PHOTOGRAPHS)
	PYTHON="$(PYTHON)" .ci/wheel-test $(BUNDLE) $(PHOTOGRAPHS)

$(BUNDLE): .venv/.all $(wildcard src/vsa_rt/recipes/*) $(wildcard export/*.py)
	$(BIN)/vsa-rt build quickstart -o $(BUNDLE)
	@touch $(BUNDLE)

$(PHOTOGRAPHS): .venv/.all
	$(BIN)/python -m vsa_rt.export.photographs $(PHOTOGRAPHS)
	@touch $(PHOTOGRAPHS)

.venv/.all: pyproject.toml setup.py constraints.txt runtime/_resample.c
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	@touch $@

.venv/.dev: .venv/.all
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

clean:
	rm -rf build dist *.egg-info
