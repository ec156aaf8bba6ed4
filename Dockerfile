# The images of this repository. Build from its root, with BuildKit:
#   docker build --target service --build-arg SERVICE=trainer --build-arg PORT=50053 .
#   docker build --target orchestration --build-arg REQUIREMENTS=airflow .
# REQUIREMENTS names a lock: a service's own unless given (trainer-gpu has CUDA); dashboard, or airflow, whose image runs
# the tasks of Kubeflow's compiled pipelines too. PYTHON_IMAGE takes a base of your own, or a digest.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The locked packages, which change seldom: a layer for themselves.
FROM ${PYTHON_IMAGE} AS dependencies
COPY requirements/uv.txt requirements/strip.sh /build/requirements/
# For `strip`, whose version leaves no trace in the images.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends binutils && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir --require-hashes -r /build/requirements/uv.txt
ARG SERVICE
ARG REQUIREMENTS=${SERVICE}
COPY requirements/${REQUIREMENTS}.txt /build/requirements/
RUN uv venv /opt/gpt2 \
    && uv pip sync --no-cache --python /opt/gpt2/bin/python --require-hashes "/build/requirements/${REQUIREMENTS}.txt" \
    && bash /build/requirements/strip.sh /opt/gpt2 \
    && echo /opt/packages > /opt/gpt2/lib/python3.11/site-packages/gpt2.pth
COPY protos/pyproject.toml /build/protos/
COPY protos/src /build/protos/src

# The code of a service.
FROM dependencies AS service-code
ARG SERVICE
COPY services/common/pyproject.toml /build/services/common/
COPY services/common/src /build/services/common/src
COPY services/${SERVICE}/pyproject.toml /build/services/${SERVICE}/
COPY services/${SERVICE}/src /build/services/${SERVICE}/src
RUN uv pip install --no-cache --python /opt/gpt2/bin/python --target /opt/packages --compile-bytecode --no-deps \
    /build/protos /build/services/common "/build/services/${SERVICE}"

# The code of the pipelines and the dashboard.
FROM dependencies AS orchestration-code
COPY orchestration/pyproject.toml /build/orchestration/
COPY orchestration/src /build/orchestration/src
RUN uv pip install --no-cache --python /opt/gpt2/bin/python --target /opt/packages --compile-bytecode --no-deps \
    /build/protos /build/orchestration

FROM ${PYTHON_IMAGE} AS base
RUN useradd --uid 10001 --create-home gpt2 && install -d -o gpt2 /data /data/airflow
USER 10001
WORKDIR /data
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"

FROM base AS service
COPY --from=dependencies /opt/gpt2 /opt/gpt2
COPY --from=service-code /opt/packages /opt/packages
ARG SERVICE
ARG PORT
# Commit of the code, recorded with every artifact: --build-arg GIT_REVISION="$(git describe --always --dirty)"
ARG GIT_REVISION=
ENV PATH=/opt/gpt2/bin:$PATH GPT2_SERVICE=$SERVICE GPT2_LISTEN=0.0.0.0:$PORT GPT2_ARTIFACT_ROOT=/data/artifacts GPT2_GIT_REVISION=$GIT_REVISION
LABEL org.opencontainers.image.title="gpt2-$SERVICE" \
      org.opencontainers.image.description="GPT-2 Pipeline: $SERVICE" \
      org.opencontainers.image.revision="$GIT_REVISION"
EXPOSE $PORT
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["/opt/gpt2/bin/python", "-I", "-S", "/opt/packages/gpt2_common/healthcheck.py"]
# `exec` makes the service process 1, which receives SIGTERM.
CMD ["sh", "-c", "exec python -m gpt2_$GPT2_SERVICE"]

FROM base AS orchestration
COPY --from=dependencies /opt/gpt2 /opt/gpt2
COPY orchestration/compose/airflow_health.sh /opt/health/
COPY orchestration/dags /opt/gpt2/dags
COPY --from=orchestration-code /opt/packages /opt/packages
ARG REQUIREMENTS
ARG GIT_REVISION=
# Gunicorn and others write to the home: that of a container with a read-only root is its temporary folder.
ENV HOME=/tmp \
    PATH=/opt/gpt2/bin:/opt/packages/bin:$PATH \
    AIRFLOW_HOME=/data/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/gpt2/dags \
    AIRFLOW__CORE__EXECUTOR=LocalExecutor \
    AIRFLOW__CORE__LOAD_EXAMPLES=false
LABEL org.opencontainers.image.title="gpt2-$REQUIREMENTS" \
      org.opencontainers.image.description="GPT-2 Pipeline: $REQUIREMENTS" \
      org.opencontainers.image.revision="$GIT_REVISION"
# Each container's own: docker-compose.yml and the manifests start several processes of this image.
HEALTHCHECK NONE
CMD ["gpt2", "--help"]
