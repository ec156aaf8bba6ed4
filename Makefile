# Set-up and the two commands of the README. Everything goes into this checkout, nothing elsewhere.

PYTHON ?= python3.11
PYTEST_WORKERS ?= 2
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
BIN := .venv/bin
MEMBERS := protos services/common services/exporter services/tokenizer services/trainer services/registry orchestration
AIRFLOW_MEMBERS := protos orchestration
DEV_SOURCES := orchestration/pyproject.toml $(MEMBERS:%=%/pyproject.toml) pyproject.toml

.PHONY: setup peers airflow env demo unit test test-exhaustive test-containers test-cluster cluster-programs test-node lint protos docs docs-serve docs-site lock lock-check release clean

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
	$(UV) pip sync --quiet --python .airflow/bin/python --require-hashes requirements/airflow.txt
	$(UV) pip install --quiet --python .airflow/bin/python --no-deps --no-build-isolation $(AIRFLOW_MEMBERS:%=-e %)
	touch $@

demo: setup
	$(BIN)/gpt2 demo

# The settings of docker-compose.yml, where there are none; passwords are made by the stack itself.
env:
	test -e .env || cp .env.example .env

# Tests start hundreds of processes, which load modules sooner where the first has compiled them: also where the
# environment forbids it, as those of containers often do.
unit test test-exhaustive: export PYTHONDONTWRITEBYTECODE =

# The tests that start no server and no process, with their coverage; PKG=exporter for those of one package.
UNIT_MEMBERS := $(if $(PKG),$(filter %/$(PKG) $(PKG),$(MEMBERS)),$(MEMBERS))

unit: setup
	$(BIN)/python -m pytest --unit --quiet --numprocesses $(PYTEST_WORKERS) --dist worksteal $(UNIT_MEMBERS:%=--cov=%/src) \
	  $(UNIT_MEMBERS:%=%/tests) $(if $(PKG),,tests --ignore=tests/end_to_end --ignore=tests/faults) $(PYTEST_OPTIONS)

# `test` leaves out what the mark `exhaustive` has: variants of what it tests by representatives. `test-exhaustive` runs
# those alone. Much of the time tests wait for servers: two at a time share it. A file's tests stay together, as they share
# servers, and the longest files come first.
test: MARKS = -m "not exhaustive"
test-exhaustive: MARKS = -m exhaustive
test test-exhaustive: setup
	$(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(MARKS) $(PYTEST_OPTIONS)

# The compose file's stack on a container engine: the machine's, or one that is installed and started for it.
# GPT2_CONTAINER_CACHE keeps that one's programs and images. tests/containers/README.md has the times.
test-containers: setup
	GPT2_TEST_CONTAINERS=$(or $(GPT2_TEST_CONTAINERS),1) $(BIN)/python -m pytest tests/containers --timeout 3600 $(PYTEST_OPTIONS)

# The tests on a control plane of Kubernetes, and its programs, which Go builds once: tests/cluster/README.md. Those of the Helm
# chart need no cluster, but Helm, which Go builds for minutes, too.
test-cluster: cluster-programs
	GPT2_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster orchestration/tests/deployment/test_chart.py $(PYTEST_OPTIONS)

cluster-programs: setup
	$(BIN)/python tests/cluster/cluster_programs.py

# The tests on a whole node, its programs and its images, which are made once: tests/node/README.md. The namespaces take the
# node's network, mounts and processes with them when the tests end.
test-node: setup
	$(BIN)/python tests/cluster/cluster_programs.py node
	$(BIN)/python -m tests.node.prepare
	GPT2_TEST_NODE=1 unshare --net --mount --pid --fork --kill-child --mount-proc \
	  $(BIN)/python -m pytest tests/node --timeout 7200 $(PYTEST_OPTIONS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(MEMBERS:%=%/src) protos/build.py requirements/lock.py requirements/version.py docs/generate.py docs/contributing/check_language.py docs/contributing/walks.py
	$(BIN)/hadolint Dockerfile
	$(BIN)/python docs/contributing/check_language.py
	$(BIN)/python protos/build.py lint
	$(BIN)/python protos/build.py check
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/contributing/walks.py --check

protos: setup
	$(BIN)/python protos/build.py generate

docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/contributing/walks.py

# The documentation as a site, with search.
.docs/.ready: requirements/docs.txt | $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	$(UV) venv --quiet --allow-existing --python 3.11 .docs
	$(UV) pip sync --quiet --python .docs/bin/python --require-hashes requirements/docs.txt
	touch $@

docs-serve: .docs/.ready
	.docs/bin/mkdocs serve

docs-site: .docs/.ready
	.docs/bin/mkdocs build --quiet --strict

lock: $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	$(PYTHON) requirements/lock.py $(UV)

lock-check: $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	$(PYTHON) requirements/lock.py $(UV) --check

# Wheels, software bills of materials of the images, and, where Docker is, the images, of the commit that is checked
# out: docs/contributing/releasing.md.
VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
IMAGES := exporter tokenizer trainer registry dashboard airflow
SBOM_TOOL := cyclonedx-bom==7.5.0

release: $(if $(filter .tools/bin/uv,$(UV)),.tools/bin/uv)
	test -z "$$(git status --porcelain)" || { echo "commit or stash your changes first" >&2; exit 1; }
	test "$$(git describe --tags --always)" = "v$(VERSION)" || { echo "tag this commit v$(VERSION) first" >&2; exit 1; }
	rm -rf dist
	$(UV) build --quiet --all-packages --wheel --out-dir dist
	for image in $(IMAGES) trainer-gpu; do \
	  $(UV) tool run --from $(SBOM_TOOL) cyclonedx-py requirements --output-reproducible --sv 1.6 \
	    --output-file dist/gpt2-$$image-$(VERSION).cdx.json requirements/$$image.txt || exit 1; \
	done
	cd dist && sha256sum *.whl *.cdx.json > SHA256SUMS
	if docker info >/dev/null 2>&1; then \
	  GIT_REVISION=v$(VERSION) docker compose --profile airflow build \
	  && for image in $(IMAGES); do docker tag gpt2-$$image gpt2-$$image:$(VERSION); done; \
	else echo "no container engine: wheels only" >&2; fi

clean:
	rm -rf .venv .peers .airflow .docs .tools dist .gpt2 protos/.build
