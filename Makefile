# make read   reads the sample images with the bundled checkpoint
# make test   lints, checks types and runs the tests
# Both set up .venv first; they need Python 3.11 or newer with the venv module.

PYTHON ?= python3
BIN := .venv/bin
PACKAGING := setup.cfg pyproject.toml constraints.txt
install = $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --constraint constraints.txt --editable

.PHONY: read test

read: .venv/installed
	$(BIN)/mstr read mstr_hf/pretrained/samples

test: .venv/installed-test
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest

.venv/installed: $(PACKAGING)
	$(install) .
	touch $@

.venv/installed-test: $(PACKAGING)
	$(install) '.[data,train,evaluation,demo,detect,onnx,test]'
	$(BIN)/python tests/transformers_suite.py
	touch .venv/installed $@
