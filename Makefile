# The two commands: `make demo` and `make test`. Each sets up .venv on a machine that has only python3 and make.

PYTHON ?= python3
# `make demo TORCH=` keeps the torch that is installed, such as a CUDA build
TORCH ?= torch==2.13.0
# versions of Transformers for `make test-versions`
VERSIONS ?= 5.20.2 5.22.2 5.24.0
# what depends on the version of Transformers: model, generation, files, remote code, converter, pipeline, trainers
VERSION_TESTS := $(filter-out %/test_transformers_suite.py,$(wildcard tests/model/test_*.py)) tests/conversion/test_conversion.py \
	tests/conversion/test_conversion_tags.py tests/conversion/test_bert.py tests/export \
	tests/training/test_trainer.py tests/training/test_training.py
# a Hub id or folder of a real encoder, for the demo
BASE ?=
BIN := .venv/bin

.PHONY: demo test test-versions test-newest test-lowest lint docs bench wheel clean

demo: .venv/ready
	$(BIN)/python examples/demo.py $(if $(BASE),--base $(BASE))

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

test-versions: $(VERSIONS:%=test-version-%)

test-version-%: .cache/versions/%/ready
	OMP_NUM_THREADS=1 .cache/versions/$*/bin/python -m pytest -n 2 -q $(VERSION_TESTS)

# the newest release of Transformers, pinned or not
test-newest:
	$(MAKE) test-version-$$($(PYTHON) -m pip index versions transformers | sed -n 's/^transformers (\(.*\))/\1/p')

# the oldest versions that pyproject.toml admits
test-lowest: .cache/versions/lowest/ready
	OMP_NUM_THREADS=1 .cache/versions/lowest/bin/python -m pytest -n 2 -q $(VERSION_TESTS)

.cache/versions/lowest/ready: pyproject.toml
	$(PYTHON) -m venv .cache/versions/lowest
	sed -n '/^dependencies/,/^dev = /p' pyproject.toml | grep -oE '[a-zA-Z0-9_-]+(\[[a-z]+\])?>=[0-9.]+' \
		| sed -E 's/\[[a-z]+\]//; s/>=/==/' > .cache/versions/lowest/constraints.txt
	.cache/versions/lowest/bin/pip install -q -c .cache/versions/lowest/constraints.txt -e '.[dev]'
	touch $@

.PRECIOUS: .cache/versions/%/ready
.cache/versions/%/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .cache/versions/$*
	grep -v '^\(transformers\|torch\)==' constraints.txt > .cache/versions/$*/constraints.txt
	.cache/versions/$*/bin/pip install -q $(TORCH) transformers==$* -c .cache/versions/$*/constraints.txt -e '.[dev]'
	touch $@

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/mkdocs build --strict

.venv/docs: .venv/ready
	$(BIN)/pip install -q -c .venv/constraints.txt -e '.[docs]'
	touch $@

bench: .venv/ready
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/serving.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(if $(TORCH),,--system-site-packages) .venv
	grep $(if $(TORCH),'',-v '^torch==') constraints.txt > .venv/constraints.txt
	$(BIN)/pip install -q $(TORCH) -c .venv/constraints.txt -e '.[dev]'
	touch $@

# setuptools also packs old modules that it finds in build/
wheel: .venv/ready
	rm -rf build
	$(BIN)/pip wheel -q --no-deps -w dist .

clean:
	rm -rf .venv .cache outputs build dist *.egg-info
