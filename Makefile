# The two commands: `make demo` and `make test`. Each sets up .venv on a machine that has only python3 and make.

PYTHON ?= python3
# `make demo TORCH=` keeps the torch that is installed, such as a CUDA build
TORCH ?= torch==2.13.0
# a Hub id or folder of a real encoder, for the demo
BASE ?=
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/ready
	$(BIN)/python examples/demo.py $(if $(BASE),--base $(BASE))

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/ready
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/serving.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(if $(TORCH),,--system-site-packages) .venv
	grep $(if $(TORCH),'',-v '^torch==') constraints.txt > .venv/constraints.txt
	$(BIN)/pip install -q $(TORCH) -c .venv/constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .cache outputs build dist *.egg-info
