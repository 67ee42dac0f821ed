PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
READY_DOCS := $(VENV)/.ready-docs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := outputs/demo
FAST := datasets figures losses reporting retrieval test_architecture.py test_results.py test_settings.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast notebooks docs docs-serve lint format hooks bench clean

help:  ## this list
	@echo "bdbnet: everything is set up in $(VENV) at the first call (needs Python 3.11 or later: make PYTHON=python3.12 ...)"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY_DEV)  ## bdbnet and the packages for its development in .venv: 7.1 GB, of which PyTorch with CUDA is 5.5

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here; name another with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed"; exit 1; }
	@echo "Setting up $(VENV), once: bdbnet and its libraries, 6.1 GB on disk, of which PyTorch and its CUDA libraries are 5.5 GB"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(READY_DEV): $(READY)
	@echo "Adding to $(VENV), once: packages for tests, checks and optional features, 0.8 GB on disk"
	$(PIP) -e '.[dev]'
	@touch $@

$(READY_DOCS): $(READY)
	@echo "Adding to $(VENV), once: packages of the site, 0.1 GB on disk"
	$(PIP) -e '.[docs]'
	@touch $@

demo: $(READY)  ## train and evaluate on rendered figures, about 3 minutes on two cores (12 without bfloat16), and leave a page to look at
	$(BIN)/python -m bdbnet.train experiment=demo run_name=demo output_root=$(DEMO) overwrite=true
	$(BIN)/python -m bdbnet.report run=$(DEMO)/train/demo

test: $(READY_DEV)  ## all tests but `make notebooks`
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(READY_DEV)  ## unit tests of five packages, which train nothing: about 2 minutes on two cores
	$(BIN)/python -m pytest -n auto --dist worksteal $(FAST:%=tests/%)

notebooks: $(READY_DEV)  ## run the notebooks in kernels of their own, and see that they print what is stored in them
	$(BIN)/python -m pytest -n auto --nbmake --nbmake-kernel=python3 --nbmake-timeout=600 -m '' notebooks
	$(BIN)/python -m pytest -n auto -m notebooks tests/test_notebooks.py

docs: $(READY_DOCS)  ## the site, into outputs/site; fails for a link or a name that leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "outputs/site/index.html"

docs-serve: $(READY_DOCS)  ## show the site, and build it anew when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: $(READY_DEV)  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY_DEV)  ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(READY_DEV)  ## have git run the checks of `make lint` before each commit
	$(BIN)/pre-commit install

bench: $(READY_DEV)  ## benchmarks; each prints a ratio against a peer or a floor measured in the same run
	for script in experiments/benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## caches and build products; datasets and outputs stay
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
