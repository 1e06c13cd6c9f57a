# Two commands do all the set-up: `make find` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= efficientnet_b0
SSIM ?= 0.2
ARGS ?=
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: find test test-slow mutants lint bench clean

find: $(STAMP)
	$(BIN)/partopt find --model $(MODEL) --ssim $(SSIM) $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout 3600

# Puts each fault of tests/mutants/faults.toml into a copy and names those that no test notices.
mutants: $(STAMP)
	$(BIN)/python tests/mutants/run.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .cache/lint && ln -sfn $(CURDIR) .cache/lint/partopt
	MYPYPATH=.cache/lint $(BIN)/mypy -p partopt --exclude '/(tests|benchmarks|build|\.venv|\.cache)/'

bench: $(STAMP)
	$(BIN)/python benchmarks/profiling.py
	$(BIN)/python benchmarks/search.py

# torch comes first and by its exact version: a plain `torch` pulls gigabytes of CUDA, and
# torchvision, installed beside it without its dependencies, would replace it.
$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "partopt needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt numpy pillow
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps torchvision
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,timm,report,dashboard,ton-iot]'
	rm -f $(VENV)/.installed-*
	touch $@

clean:
	rm -rf $(VENV) .cache build *.egg-info
