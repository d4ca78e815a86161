PYTHON ?= python3
BIN = .venv/bin

.PHONY: install demo test test-multinode test-slow lint format clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,dashboards,search]'
	touch $@

# Trains experts, distils scikit-learn's digits on two Ray workers, evaluates and writes demo/report.html.
demo: install
	rm -rf demo
	$(BIN)/raydd distill digits-mtt-ipc1 --run demo --store demo-store --workers 2 \
	    --selection.policy dynadistill --selection.candidates 3
	$(BIN)/raydd export demo --to png demo/png

# Two processes: most tests of Ray wait. Those that share the one Ray cluster stay together (tests/conftest.py).
test: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# Several Ray nodes on this machine, with nodes killed: minutes, so apart from `make test`.
test-multinode: install
	$(BIN)/python -m pytest -m multinode

# Whole sweeps, with their processes killed and taken up again: minutes, so apart from `make test`.
test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo demo-store
