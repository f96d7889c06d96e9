# One image for every part of a deployment: what a container does is its command, see deploy/.
#
#   docker build --target cpu  --tag fedfuse:cpu .
#   docker build --target cuda --tag fedfuse:cuda .
#
# Packages have the versions of constraints.txt, which the tests ran with.

ARG PYTHON=3.11.14-slim-bookworm
ARG CUDA=12.8.1-base-ubuntu24.04

FROM python:${PYTHON} AS wheel
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fedfuse fedfuse
COPY strategies strategies
COPY clients clients
RUN pip install --no-cache-dir --constraint constraints.txt build hatchling \
    && python -m build --wheel --no-isolation --outdir /wheels \
    && cp constraints.txt /wheels

# --- CPU -----------------------------------------------------------------------------------------

FROM python:${PYTHON} AS packages-cpu
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    python -m venv /opt/fedfuse \
    && /opt/fedfuse/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu /wheels/*.whl

FROM python:${PYTHON} AS cpu
COPY --from=packages-cpu /opt/fedfuse /opt/fedfuse
RUN useradd --uid 10001 --create-home --home-dir /var/lib/fedfuse fedfuse
USER 10001
WORKDIR /var/lib/fedfuse
ENV PATH=/opt/fedfuse/bin:$PATH \
    FEDFUSE_CACHE=/var/lib/fedfuse/cache \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_HOME=/var/lib/fedfuse/flower \
    FLWR_TELEMETRY_ENABLED=0 \
    HEALTH_PORT=8000 \
    HF_HOME=/var/lib/fedfuse/hub
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import os, socket; socket.create_connection(('127.0.0.1', int(os.environ['HEALTH_PORT'])), 3)"]
CMD ["fedfuse", "--help"]

# --- CUDA: the same on NVIDIA's base --------------------------------------------------------------

FROM nvidia/cuda:${CUDA} AS python-cuda
# Ubuntu keeps one version of a package only, so one that is pinned could not be had tomorrow.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

FROM python-cuda AS packages-cuda
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    python3.12 -m venv /opt/fedfuse \
    && /opt/fedfuse/bin/pip install --no-cache-dir --constraint /wheels/constraints.txt \
        /wheels/*.whl

FROM python-cuda AS cuda
COPY --from=packages-cuda /opt/fedfuse /opt/fedfuse
RUN useradd --uid 10001 --create-home --home-dir /var/lib/fedfuse fedfuse
USER 10001
WORKDIR /var/lib/fedfuse
ENV PATH=/opt/fedfuse/bin:$PATH \
    FEDFUSE_CACHE=/var/lib/fedfuse/cache \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_HOME=/var/lib/fedfuse/flower \
    FLWR_TELEMETRY_ENABLED=0 \
    HEALTH_PORT=8000 \
    HF_HOME=/var/lib/fedfuse/hub
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import os, socket; socket.create_connection(('127.0.0.1', int(os.environ['HEALTH_PORT'])), 3)"]
CMD ["fedfuse", "--help"]
