# make demo and make test do everything on a machine that has Python 3.11+, pip, a C++ compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format model clean

demo: $(STAMP)
	@$(BIN)/lightvllm demo $(if $(ASK),--ask "$(ASK)")

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# From nothing to the default model's folder, lightvllm/default_model: about an hour on one core. Goes on where it stopped.
model: $(STAMP)
	$(BIN)/python -m lightvllm.training

# The pinned torch goes in first: an open requirement would pull gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard lightvllm/kernels/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
