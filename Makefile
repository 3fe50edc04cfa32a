# Every target sets up what it needs: a virtual environment in this folder, with the pinned packages.
#   PYTHON=python3.12          the interpreter that makes a new virtual environment
#   TORCH=torch==2.11.0        another torch, in a virtual environment of its own
#   CUDA=1                     take a CUDA build of torch although there is no NVIDIA GPU

PYTHON ?= python3
DEFAULT_TORCH := torch==2.13.0
TORCH ?= $(DEFAULT_TORCH)
CUDA ?=

ifeq ($(TORCH),$(DEFAULT_TORCH))
VENV := .venv
else
VENV := .venv-$(shell printf '%s' '$(notdir $(TORCH))' | tr -cs 'A-Za-z0-9.+' '-')
endif
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Inductor looks for g++ only, unless CXX names another one.
ifeq ($(origin CXX),default)
CXX := $(firstword $(foreach name,g++ clang++ c++,$(if $(shell command -v $(name) 2>/dev/null),$(name))))
endif
ifneq ($(CXX),)
export CXX
endif

# CUDA builds of torch bring the Triton that they need; on the CPU, where the tests run the kernels in
# Triton's interpreter, any will do. There are wheels for Linux alone; elsewhere these tests skip.
ifeq ($(shell uname -s),Linux)
INSTALL_TRITON := $(BIN)/python -m pip install -qq --no-deps triton==3.7.1
else
INSTALL_TRITON := true
endif

# Two workers that each use one thread: more threads only fight over two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile
# Files that need no model of diffusers.
QUICK := $(wildcard tests/graph/test_find_*.py) tests/repo/test_imports.py $(addprefix tests/policy/test_,dbcache.py published_rules.py step_mask.py)

.PHONY: help demo quick test test-all check bench gallery serve clean host
.DEFAULT_GOAL := help

help:
	@echo 'make demo      draws with and without the cache, into demo_out/'
	@echo 'make quick     a first answer in under two minutes: rules, what is cut, imports'
	@echo 'make test      the tests, without the slow ones and those that need a GPU'
	@echo 'make test-all  all tests but those that need a GPU'
	@echo 'make check     lint, format and types'
	@echo 'make bench     speed on this machine'
	@echo 'make gallery   what the methods draw side by side, as a page in gallery_out/'
	@echo 'make serve     a server of the embedded model, with a page, at http://127.0.0.1:8000/'
	@echo 'make clean     removes everything that make made'

demo: $(STAMP)
	$(BIN)/python -m dit_cachegraph demo --out demo_out

quick: $(STAMP)
	$(PYTEST) -m "not slow and not gpu and not e2e" $(QUICK)

test: $(STAMP)
	$(PYTEST) -m "not slow and not gpu"

# The explorer draws other schedules each time; a failure says how to draw those again.
test-all: $(STAMP)
	EXPLORER_SEED=fresh $(PYTEST) -m "not gpu"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dit_cachegraph bench $(wildcard kernels/dit_cachegraph_kernels)

bench: $(STAMP)
	$(BIN)/python -m bench.models --preset host

gallery: $(STAMP)
	$(BIN)/python -m bench.gallery --out gallery_out

serve: $(STAMP)
	$(BIN)/python -m dit_cachegraph serve

clean:
	rm -rf .venv .venv-* build dist *.egg-info demo_out quality_out gallery_out
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

host:
	@$(PYTHON) scripts/check_environment.py host

$(BIN)/python: | host
	$(PYTHON) -m venv --clear $(VENV)

# The choice of torch is checked before anything large is fetched. A package root that appears
# under kernels/ has to be mapped by a new editable install.
$(STAMP): pyproject.toml requirements/pinned.txt $(wildcard kernels/*/__init__.py) $(BIN)/python | host
	@echo 'Installing $(TORCH) and the pinned packages into $(VENV)'
	@$(BIN)/python -m pip install -qq "$$(grep '^pip==' requirements/pinned.txt)"
	@CUDA='$(CUDA)' $(BIN)/python scripts/check_environment.py choice '$(TORCH)'
	@$(BIN)/python -m pip install -qq --requirement requirements/pinned.txt '$(TORCH)'
	@$(BIN)/python scripts/check_environment.py torch
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(INSTALL_TRITON)
	@$(BIN)/python -m pip install -qq --no-build-isolation --no-deps --editable .
	@touch $@
