# SPDX-License-Identifier: Apache-2.0
# demo: export the demo model and talk to it.  test: everything CI checks.  lint: style, types and directions only.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint oracle clean

demo: .venv/installed
	$(BIN)/orin-export build recipes/demo.yaml --target targets/host.yaml -o build/demo
	$(BIN)/orin-run selftest build/demo
	$(BIN)/orin-run generate build/demo --max-tokens 96 --temperature 0.7 --seed 7 "ROMEO:"
	$(BIN)/orin-run chat build/demo --max-tokens 120 --say "Tom has 3 apples and buys 4 more. How many apples does he have?"

test: lint
	$(BIN)/pytest -q

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Needs torch and transformers (see tests/oracle/requirements.txt): makes the committed fixtures again and compares live.
oracle: .venv/oracle
	$(BIN)/python tests/oracle/make_fixtures.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv/oracle: .venv/installed tests/oracle/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement tests/oracle/requirements.txt
	touch $@

clean:
	rm -rf .venv build
