# make demo, make test: on a fresh machine these two set up all they need, in .venv, and run it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := hatch_build.py $(shell find src scripts docs/bindlock.1 -type f -not -name "*.pyc" 2>/dev/null)

.PHONY: demo test stress check bench docs evidence clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

test: $(VENV)/tools-test
	$(BIN)/python -m pytest $(PYTEST)

# The long forms of the stress tests: half an hour.
stress: $(VENV)/tools-test
	$(BIN)/python -m pytest --long $(PYTEST)

check: $(VENV)/tools-test $(VENV)/tools-check $(VENV)/tools-bench
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/tools-bench
	$(BIN)/python -m benchmarks $(BENCH)

# The figures of docs/when-is-it-free.md, anew: a quarter of an hour.
evidence: $(VENV)/tools-test
	$(BIN)/bindlock prove --json docs/evidence.json --html docs/evidence.html
	$(BIN)/python docs/evidence.py

docs: $(VENV)/tools-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv* build dist site

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv module here; on Debian: apt-get install python3-venv"; exit 1; }

# What is tested is what users install: a wheel, not the source tree.
$(VENV)/installed: $(BIN)/python pyproject.toml README.md $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	@touch $@

$(VENV)/tools-%: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[$*]'
	@touch $@
