# Two images: `launcher` is the command line without torch, `train` the image of training pods.
#
#     docker build --target launcher --tag cpmbee-job/launcher .
#     docker build --target train --tag cpmbee-job/train .
#
# podman and buildah accept the same options. Behind a proxy, or with a private package index, add these secrets. Neither
# is stored in a layer:
#
#     --secret id=ca,src=company-ca.pem          the CA certificates that pip and apt trust
#     --secret id=pip_conf,src=pip.conf          pip's configuration, with the index and its credentials
#
# The base may be any Debian or Ubuntu with Python 3.11. Pin its digest for reproducible builds, and pull it from a registry
# that you trust: --build-arg BASE_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
RUN --mount=type=secret,id=ca \
    python3 -c 'import sys; sys.exit("BASE_IMAGE must have Python 3.11" if sys.version_info[:2] != (3, 11) else 0)' \
 && packages=tini && { python3 -c 'import ensurepip' 2>/dev/null || packages="tini python3-venv"; } \
 && if [ -f /run/secrets/ca ]; then set -- -o Acquire::https::CAInfo=/run/secrets/ca; fi \
 && apt-get "$@" update --quiet \
 && apt-get "$@" install --quiet --yes --no-install-recommends $packages \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/apt /var/log/*.log \
 && python3 -m venv --without-pip /opt/venv
# The cluster may choose any user id. torch requires a user name, which /etc/passwd does not have for that id.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp USER=cpmbee LOGNAME=cpmbee PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp

# Only our package, in a virtual environment. The lock also pins its build requirements.
FROM base AS package
COPY locks/train.txt /src/locks/
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip_conf \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && export PIP_CONFIG_FILE=/run/secrets/pip_conf \
 && python3 -m venv /opt/build \
 && awk '/^[^ ]/ { wanted = /^setuptools==/ } wanted' /src/locks/train.txt > /src/build.txt \
 && /opt/build/bin/pip install --quiet --no-deps --require-hashes -r /src/build.txt
COPY pyproject.toml README.md LICENSE /src/
COPY cpmbee_job /src/cpmbee_job
# Bytecode with hashes instead of modification times, which not every build tool copies.
RUN /opt/build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /src/dist /src \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --quiet --no-deps --no-index --no-compile /src/dist/*.whl \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib/python3.11/site-packages

FROM base AS launcher
COPY locks/launcher.txt /opt/venv/lock.txt
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip_conf \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && export PIP_CONFIG_FILE=/run/secrets/pip_conf \
 && python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --python /opt/venv/bin/python install \
    --quiet --no-cache-dir --no-deps --require-hashes -r /opt/venv/lock.txt \
 && rm -rf /tmp/*
COPY --from=package /opt/venv /opt/venv
ARG VERSION=unknown REVISION=unknown SOURCE=unknown
LABEL org.opencontainers.image.title="cpmbee-job launcher" \
      org.opencontainers.image.description="Submits and follows fine-tuning jobs of CPM-Bee on Kubernetes" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["tini", "--", "cpmbee-job"]

FROM base AS train
COPY locks/train.txt /opt/venv/lock.txt
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip_conf \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && export PIP_CONFIG_FILE=/run/secrets/pip_conf \
 && python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --python /opt/venv/bin/python install \
    --quiet --no-cache-dir --no-deps --require-hashes -r /opt/venv/lock.txt \
 && rm -rf /tmp/*
COPY --from=package /opt/venv /opt/venv
ARG VERSION=unknown REVISION=unknown SOURCE=unknown
LABEL org.opencontainers.image.title="cpmbee-job train" \
      org.opencontainers.image.description="Prepares data and fine-tunes CPM-Bee in the pods of a training job" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["tini", "--", "python"]
