# Thermocline: `thermocline worker`, and every other command. The data directory is the volume /data.
FROM python:3.12.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /app

# What is pinned, by hash, in a layer of its own; then this project without its dependencies.
COPY requirements.lock ./
RUN pip install --no-deps --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
COPY ingest ./ingest
COPY tiers ./tiers
COPY archiver ./archiver
COPY query ./query
COPY serve ./serve
RUN pip install --no-deps --no-build-isolation . && rm -rf build

COPY deploy ./deploy

RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin thermocline \
    && install -d -o thermocline -g thermocline /data
USER thermocline
WORKDIR /data
VOLUME /data
ENV THERMOCLINE_DATA_DIR=/data

# Fails when Redis, the ledger or the worker is in trouble (health red).
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 CMD ["thermocline", "status", "--check"]

CMD ["thermocline", "worker"]
