# make demo and make test do everything on a machine that has Python 3.11+, pip, a C++ compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo serve test chaos sanitize lint format docs model clean

# Through the environment: a question may hold quotes and dollar signs.
demo: export QUESTION = $(value ASK)
demo: $(STAMP)
	@$(BIN)/lightvllm demo $${QUESTION:+--ask "$$QUESTION"}

# The OpenAI-compatible server on http://127.0.0.1:8000, with the default model, and its page; ARGS takes flags.
serve: $(STAMP)
	@$(BIN)/lightvllm serve $(ARGS)

# A file's tests run one after the other: they share what was costly to start.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

# Minutes of mistreatment of a real server; the tests have a short form of it.
chaos: $(STAMP)
	$(BIN)/python -m pytest tests/chaos --chaos-kills 10 --chaos-rounds 40 --timeout 1800

# The kernels' tests with the address and undefined-behaviour sanitizers, in a copy: the package's own kernels stay.
# libstdc++ is loaded early, too: the sanitizer looks for it when it begins, and Python itself has no need of it.
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: $(STAMP)
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r setup.py pyproject.toml README.md LICENSE lightvllm tests $(SANITIZED) && rm -f $(SANITIZED)/lightvllm/kernels/_cpu*.so
	cd $(SANITIZED) && CFLAGS="$(SANITIZERS) -g1" LDFLAGS="$(SANITIZERS)" $(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd $(SANITIZED) && test -e lightvllm/kernels/_cpu.so && ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    $(abspath $(BIN))/python -m pytest tests/kernels --capture=sys --timeout 1800 $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site of the documentation, in build/site/index.html. Strict: a link that leads nowhere is an error. Not --quiet, which
# hides the warnings from --strict, too.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# From nothing to the default model's folder, lightvllm/default_model. It wants an accelerator (ten minutes on an H200);
# RECIPE=small makes a smaller one in runs/small/model, within an hour on one processor core. Goes on where it stopped.
RECIPE ?= default
model: $(STAMP)
	$(BIN)/python -m lightvllm.training --recipe $(RECIPE)

# torch goes in first and pinned, so that nothing after it pulls another. Where pip's own torch is the build with CUDA,
# name an index with the CPU wheels in PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS. The kernels are built against this torch.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard lightvllm/kernels/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
