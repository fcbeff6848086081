# The README's two commands, and those of a developer. Each installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
# A plain `torch` brings several gigabytes of CUDA; this version has a CPU build to fall back on.
TORCH ?= torch==2.13.0

.PHONY: demo test fix lint bench clean schema

.venv/installed: pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[train,eval,dev]"
	touch $@

demo: .venv/installed
	$(BIN)/adapt demo --out demo

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest tests adapt

fix: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv demo dist .pytest_cache .mypy_cache .ruff_cache

schema: .venv/installed
	$(BIN)/python -m adapt.recipe
