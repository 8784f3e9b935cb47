# An image for every node of a cluster: docker build -t registry.example.com/synchromesh:0.1.0 .
# The same for head, servers and workers; no compiler, no source, no root.
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}
# KubeRay asks a pod by wget whether its Ray is well.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/constraints.txt /tmp/constraints.txt
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /tmp/constraints.txt /wheels/*.whl \
    && rm /tmp/constraints.txt
RUN useradd --uid 1000 --create-home --shell /bin/bash ray
USER 1000
WORKDIR /home/ray
CMD ["bash"]
