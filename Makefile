# Two commands do everything: `make train` and `make test`. Each makes its own .venv.
# `make train MODE=auto` takes another mode than the job's, JOB=FILE another job.
PYTHON ?= python3
JOB ?= jobs/dlrm.yaml
ROWS ?= 1000000
DATA := data/criteo-like
BIN := .venv/bin

.PHONY: venv data train test test-slow test-torch gpu-check lint format clean

venv: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# Three at a time on two cores: jobs on Ray wait for processes to start, and others compute meanwhile.
# tests/conftest.py says which must not run beside one another. Bytecode is kept, whatever the
# environment says: else every process, an actor too, compiles our modules, and the tests, again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 3 --dist loadfile

# The generated data are made once; the file below is written last.
data: $(DATA)/about.json

$(DATA)/about.json: | venv
	$(BIN)/synchromesh data criteo-like --rows $(ROWS) --out $(DATA)

train: venv data
	$(BIN)/synchromesh train $(JOB) run.overwrite=true $(MODE:%=training.mode=%) $(ARGS)

test: venv
	$(PYTEST) -m 'not slow' $(ARGS)

test-slow: venv
	$(PYTEST) -m slow $(ARGS)

# Torch is no part of `dev`: with the libraries for GPUs that come with it, it takes 5 GB. Once it is
# there `make test` runs these too.
TORCH := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,torch]'
test-torch: venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(TORCH)
	$(PYTEST) -m 'not slow' $(shell grep -rl 'importorskip("torch")' tests) $(ARGS)

# What needs a GPU, one test after another, and then the dense step there beside the CPU: JSON lines.
gpu-check: venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(TORCH)
	$(BIN)/python -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU here"'
	$(BIN)/python -m pytest -q -m gpu $(shell grep -rl 'mark.gpu' tests --include='test_*.py') $(ARGS)
	$(BIN)/python benchmarks/bench_gpu.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv data runs .pytest_cache .mypy_cache .ruff_cache
