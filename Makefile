# Two commands do all the set-up: `make find` runs the main job, `make test` passes the tests.
# `make help` lists all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= efficientnet_b0
SSIM ?= 0.2
ARGS ?=
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
DOCS_STAMP := $(STAMP)-docs
COVERAGE_STAMP := $(STAMP)-coverage
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
# Least percent of lines that `make coverage` wants run, and by which tests.
FLOOR ?= 70
COVERED ?= tests
.PHONY: help find test test-slow test-gramine test-minimum coverage mutants lint docs bench clean

help: ## lists these
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

find: $(STAMP) ## sets up .venv; partopt find --model MODEL --ssim SSIM
	$(BIN)/partopt find --model $(MODEL) --ssim $(SSIM) $(ARGS)

# Two files at a time, one compute thread each: as fast as two cores are.
test: $(STAMP) ## sets up .venv; the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP) ## tests that take minutes
	$(BIN)/python -m pytest -m slow --timeout 3600

# Head workers under gramine-direct, which has to be on PATH; ARGS='-m slow' for the minutes-long ones.
test-gramine: $(STAMP) ## the tests of services with head workers under gramine-direct
	PARTOPT_TEST_ENCLAVE=gramine-direct OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 3600 $(ARGS) \
	    tests/enclave_runner/test_gramine.py tests/enclave_runner/test_service.py \
	    tests/enclave_runner/adversary

# uv takes the least version of each, and PyTorch for the CPU.
test-minimum: ## the suite with the least versions that pyproject.toml declares, in .cache/minimum
	$(PYTHON) -m venv .cache/minimum
	.cache/minimum/bin/python -m pip install -q --disable-pip-version-check uv
	. .cache/minimum/bin/activate && uv pip install --torch-backend cpu \
	    --resolution lowest-direct -e '.[test,timm,report,dashboard,ton-iot]'
	.cache/minimum/bin/python -m pytest

mutants: $(STAMP) ## does a test notice each fault of tests/mutants/faults.toml? ARGS=WORD for some
	$(BIN)/python tests/mutants/run.py $(ARGS)

coverage: $(COVERAGE_STAMP) ## the suite with coverage, at least FLOOR percent; COVERED=tests/... for a part
	$(BIN)/python -m pytest --cov=partopt --cov-report=term:skip-covered --cov-fail-under=$(FLOOR) $(COVERED)

docs: $(DOCS_STAMP) ## the documentation in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .cache/lint && ln -sfn $(CURDIR) .cache/lint/partopt
	MYPYPATH=.cache/lint $(BIN)/mypy -p partopt --exclude '/(tests|benchmarks|build|\.venv|\.cache)/'

bench: $(STAMP) ## benchmarks: ratios within one run
	$(BIN)/python benchmarks/profiling.py
	$(BIN)/python benchmarks/search.py

# torch comes first and by its exact version: a plain `torch` pulls gigabytes of CUDA, and
# torchvision, installed beside it without its dependencies, would replace it.
$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "partopt needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) numpy pillow
	$(PIP) --no-deps torchvision
	$(PIP) -e '.[dev,timm,report,dashboard,ton-iot]'
	rm -f $(VENV)/.installed-*
	touch $@

# Tools of one target each, which the others need not wait for.
$(DOCS_STAMP): $(STAMP)
	$(PIP) -e '.[docs]'
	touch $@

$(COVERAGE_STAMP): $(STAMP)
	$(PIP) -e '.[coverage]'
	touch $@

clean: ## removes .venv and what was built
	rm -rf $(VENV) .cache build *.egg-info
