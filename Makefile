# Set-up and the two commands of the README. Everything goes into this checkout, nothing elsewhere.

PYTHON ?= python3.11
PYTEST_WORKERS ?= 2
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
BIN := .venv/bin
MEMBERS := protos services/common services/exporter services/tokenizer services/trainer services/registry orchestration
DOCKERFILES := $(wildcard services/*/Dockerfile orchestration/Dockerfile)
AIRFLOW_MEMBERS := protos orchestration
DEV_SOURCES := orchestration/pyproject.toml $(MEMBERS:%=%/pyproject.toml) pyproject.toml

.PHONY: setup peers airflow demo test lint protos docs lock lock-check clean

setup: .venv/.ready

.tools/bin/uv: requirements/uv.txt
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt

.venv/.ready: requirements/dev.txt $(MEMBERS:%=%/pyproject.toml) | $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	$(UV) venv --quiet --allow-existing --python 3.11 .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation $(MEMBERS:%=-e %)
	touch $@

# The libraries that tests and benchmarks compare ours with; several gigabytes, as PyTorch brings CUDA along.
peers: .peers/.ready

.peers/.ready: requirements/peers.txt | $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	$(UV) venv --quiet --allow-existing --python 3.11 .peers
	$(UV) pip sync --quiet --python .peers/bin/python --require-hashes requirements/peers.txt
	touch $@

# Airflow with the pipelines, for its scheduler and workers; apart, as it needs an older SQLAlchemy than MLflow's server.
airflow: .airflow/.ready

.airflow/.ready: requirements/airflow.txt $(AIRFLOW_MEMBERS:%=%/pyproject.toml) | $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	$(UV) venv --quiet --allow-existing --python 3.11 .airflow
	$(UV) pip sync --quiet --compile-bytecode --python .airflow/bin/python --require-hashes requirements/airflow.txt
	$(UV) pip install --quiet --python .airflow/bin/python --no-deps --no-build-isolation $(AIRFLOW_MEMBERS:%=-e %)
	touch $@

demo: setup
	$(BIN)/gpt2 demo

# Much of the time tests wait for servers: two at a time share it. A file's tests stay together, as they share servers,
# and the longest files come first.
test: setup
	$(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(MEMBERS:%=%/src) protos/build.py requirements/lock.py docs/generate.py
	$(BIN)/hadolint $(DOCKERFILES)
	$(BIN)/python protos/build.py lint
	$(BIN)/python protos/build.py check
	$(BIN)/python docs/generate.py --check

protos: setup
	$(BIN)/python protos/build.py generate

docs: setup
	$(BIN)/python docs/generate.py

lock: $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	$(PYTHON) requirements/lock.py $(UV)

lock-check: $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	$(PYTHON) requirements/lock.py $(UV) --check

clean:
	rm -rf .venv .peers .airflow .tools .gpt2 protos/.build
