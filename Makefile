# Everything sets up what it needs, in .venv. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test check bench docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch torchvision
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## the main job end to end on drawn pictures, offline
	$(BIN)/vizsla demo

test: setup  ## every test
	$(BIN)/python -m pytest

check: setup  ## style, types, architecture, generated pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py
	$(BIN)/python -m vizsla.cli.reference --check docs/cli.md

docs: setup  ## write the generated pages anew
	$(BIN)/python -m vizsla.cli.reference docs/cli.md

bench: setup  ## every benchmark; takes a while
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs demo
