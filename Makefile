# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.10 or newer with venv is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: help install demo lint types test test-all bench zoo clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

install: $(VENV)/.demo ## create the virtual environment and install

demo: $(VENV)/.demo ## prune, factorise and quantize a model that ships with the project, and prove the result
	@PATH="$(BIN):$$PATH" sh model_zoo/demo.sh demo-out

lint: $(VENV)/.test ## format check and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test ## type-check ir, runtime, passes, cli under their one import name
	@rm -rf .build/types && mkdir -p .build/types/onnxslim_opt
	@cp onnxslim_opt/*.py onnxslim_opt/py.typed .build/types/onnxslim_opt/
	@for room in ir runtime passes cli model_zoo; do ln -sfn "$(CURDIR)/$$room" .build/types/onnxslim_opt/$$room; done
	cd .build/types && $(BIN)/mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" -p onnxslim_opt

test: lint types ## lint, types, and the tests (under 15 minutes on 2 cores)
	$(BIN)/python -m pytest

test-all: $(VENV)/.test ## every test, the slow ones too
	$(BIN)/python -m pytest -m ''

bench: $(VENV)/.test ## measure on real models, INT8 beside ONNX Runtime's own and, with NNCF=PYTHON AIMET=PYTHON, beside these
	$(BIN)/python benchmarks/run.py --out bench-out
	$(BIN)/python benchmarks/quant.py --out bench-out/quant $(if $(NNCF),--peer nncf=$(NNCF)) $(if $(AIMET),--peer aimet=$(AIMET))

clean:
	rm -rf $(VENV) .build build dist *.egg-info demo-out bench-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
