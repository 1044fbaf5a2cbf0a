# `make demo` trains, exports and proves a 1-bit network; `make test` checks everything.
# Both make their own environment in .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: .venv/demo
	$(BIN)/qdeploy train --force -o runs/demo
	$(BIN)/qdeploy export runs/demo
	$(BIN)/qdeploy benchmark runs/demo/float.onnx runs/demo/model.onnx --data digits

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2
