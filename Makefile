# Each target sets up what it needs in .venv; nothing but Python (3.10 or newer), make and a package index is assumed.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
# Set-up is done again when what is to be installed has changed.
READY := .venv/.ready
DOCS := .venv-docs

.PHONY: quickstart test lint types slow real bench docs clean

quickstart: $(READY)  ## LoRA beside FCLoRA on text that ships with Python
	$(BIN)/lit-spectral quickstart

test: $(READY) lint  ## all tests but the slow ones, in parallel
	$(BIN)/pytest -n auto --dist worksteal

lint: $(READY)  ## style, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types

types: $(READY)  ## types of the package as it is built
	rm -rf build/lib build/typed  # and not build: a strict editable install lies there
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache/typed
	rm -rf build/lib build/typed

slow: $(READY)  ## tests that take long: whole processes, every architecture under every method
	$(BIN)/pytest -n auto --dist worksteal -m slow

real: $(READY)  ## a few dozen steps on a real backbone and MRPC, from LIT_SPECTRAL_BACKBONE and LIT_SPECTRAL_MRPC
	$(BIN)/pytest -m real

bench: $(READY)  ## ours beside peft's, half an hour on a machine that does nothing else
	$(BIN)/python -m benchmarks

docs: $(DOCS)/.ready  ## the documentation site, in build/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build
	@echo "site: build/site/index.html"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Its own environment: no torch, so that it is there in seconds, and nobody waits for it who tests.
$(DOCS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet 'pip>=25.1'  # the first with --group
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt --group docs
	touch $@

clean:
	rm -rf .venv $(DOCS) build runs .mypy_cache .pytest_cache .ruff_cache
