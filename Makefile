# `make demo` trains, exports and proves a 1-bit network; `make test` checks everything, `make check` in
# less than a minute what finds most. Each makes its own environment in .venv. `make test-oldest` runs the tests with the
# oldest versions that qdeploy takes, in .venv-oldest; it wants PYTHON to be 3.11 or 3.12.

PYTHON ?= python3
BIN := .venv/bin

# What a change breaks first: 1,700 cases that take some 45 seconds of CPU, most of them without a file.
CHECKED := tests/test_architecture.py tests/test_cli.py tests/test_grid.py tests/test_recipe.py tests/layers \
	tests/preparation/test_prepare.py tests/preparation/test_quantizer_placement.py \
	tests/preparation/test_settings.py tests/deploy/test_dorefa_files.py \
	tests/methods/test_contract.py::test_folded_integers_give_what_evaluation_gives \
	tests/methods/test_contract.py::test_training_rounds_an_activation_to_what_ships

.PHONY: check demo lint test test-oldest

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]"
	touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: .venv/demo
	$(BIN)/qdeploy train --force -o runs/demo
	$(BIN)/qdeploy export runs/demo
	$(BIN)/qdeploy benchmark runs/demo/float.onnx runs/demo/model.onnx --data digits

check: .venv/test lint
	$(BIN)/pytest -q -n 2 $(CHECKED)

test: .venv/test lint
	$(BIN)/pytest -q -n 2

.venv-oldest/test: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[test]"
	touch $@

test-oldest: .venv-oldest/test
	.venv-oldest/bin/pytest -q -n 2

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
