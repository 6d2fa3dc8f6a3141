# A fresh machine needs Python 3.11, pip and make. `make demo` and `make test` set up .venv themselves.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
BUNDLE := build/quickstart.bundle
# Copies of the photographs that scikit-image and scikit-learn ship.
PHOTOGRAPHS := build/photographs
BINDINGS := build/bindings

.PHONY: demo test test-aot test-gpu bindings lint-docker check wheel wheel-test clean

demo: $(BUNDLE) $(PHOTOGRAPHS)
	$(BIN)/vsa-rt run $(BUNDLE) $(PHOTOGRAPHS) --format table
	$(BIN)/python -m vsa_rt.bench.demo $(BUNDLE)

test: .venv/.dev bindings
	$(BIN)/python -m pytest

# Whole ensembles through TensorRT's compiler, ahead of time and without a GPU: the second CI job.
test-aot: .venv/.dev
	$(BIN)/python -m pytest -m aot

# On a machine with an NVIDIA GPU: what nothing else can prove. Each test that cannot run says what is missing.
test-gpu: .venv/.dev
	$(BIN)/python -m pytest -m gpu tests/gpu

# The thin bindings of the TensorRT versions at both ends of what is supported: names are checked against them.
# Not every machine has wheels of them: without, those tests are skipped.
bindings: $(BINDINGS)/10.3.0/tensorrt_bindings $(BINDINGS)/11.4.0/tensorrt_bindings

$(BINDINGS)/10.3.0/tensorrt_bindings: | .venv/.all
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) tensorrt-cu12-bindings==10.3.0

$(BINDINGS)/11.4.0/tensorrt_bindings: | .venv/.all
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) 'tensorrt-cu13-bindings==11.4.*'

check: .venv/.dev lint-docker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Not every machine has a wheel of it.
lint-docker: .venv/.dev
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint docker/*.Dockerfile

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
