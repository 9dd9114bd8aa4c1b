# pinlake's images, one target each, from the locks by hash; docker-compose.yml says which service runs which.
#
#     pinlake   Airflow, Spark and the assistant: one Python and one code, so that what a DAG submits is what a worker has
#     mlflow    MLflow's server, in an environment of its own: it forbids pinlake's pyarrow
#     store     the S3-compatible store to try things out with (demo/s3_store.py)
#
# None runs as root, and none may write to its own code. Packages come from the index that pip and uv are configured for.
# For builds that are to be alike to the byte, give a base by digest: --build-arg BASE=docker.io/library/debian@sha256:...
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS base
ENV LANG=C.UTF-8 PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 50000 pinlake \
    && useradd --uid 50000 --gid 50000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin pinlake
WORKDIR /opt/pinlake

# uv, from the lock that the repository's own environment is made of. It stays in this stage.
FROM base AS uv
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY requirements-dev.lock ./
RUN awk '/^uv==/ {found = 1} found {print} found && !/\\$/ {exit}' requirements-dev.lock > uv.lock \
    && python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir --require-hashes -r uv.lock \
    && python3 -m venv --without-pip /opt/venv
ENV UV_HTTP_TIMEOUT=300 UV_LINK_MODE=hardlink UV_NO_CACHE=1

FROM uv AS pinlake-environment
COPY requirements.lock ./
RUN /opt/uv/bin/uv pip sync --python /opt/venv/bin/python --require-hashes --compile-bytecode requirements.lock
# The code is found where it lies; `pinlake` is its command.
RUN echo /opt/pinlake > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pinlake.pth" \
    && printf '#!/opt/venv/bin/python\nfrom embedding.cli import main\n\nraise SystemExit(main())\n' > /opt/venv/bin/pinlake \
    && chmod 0755 /opt/venv/bin/pinlake

FROM uv AS mlflow-environment
COPY tools/images/mlflow.lock ./
RUN /opt/uv/bin/uv pip sync --python /opt/venv/bin/python --require-hashes --compile-bytecode mlflow.lock

FROM uv AS store-environment
COPY tools/images/store.lock ./
RUN /opt/uv/bin/uv pip sync --python /opt/venv/bin/python --require-hashes --compile-bytecode store.lock

FROM base AS pinlake
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 50000 -g 50000 /var/lib/airflow /var/lib/airflow-auth /var/log/airflow /var/lib/spark /var/cache/pinlake
COPY --from=pinlake-environment /opt/venv /opt/venv
COPY assistant ./assistant
COPY dags ./dags
COPY embedding ./embedding
COPY jobs ./jobs
COPY tools/images ./tools/images
RUN /opt/venv/bin/python -m compileall -q assistant dags embedding jobs
ENV AIRFLOW_HOME=/var/lib/airflow PINLAKE_CACHE=/var/cache/pinlake PYSPARK_PYTHON=/opt/venv/bin/python
USER 50000:50000

FROM base AS mlflow
RUN install -d -o 50000 -g 50000 /var/lib/mlflow
COPY --from=mlflow-environment /opt/venv /opt/venv
COPY tools/images/answers.py ./tools/images/
USER 50000:50000

FROM base AS store
RUN install -d -o 50000 -g 50000 /var/lib/store
COPY --from=store-environment /opt/venv /opt/venv
COPY demo/__init__.py demo/s3_store.py ./demo/
COPY tools/images/answers.py ./tools/images/
USER 50000:50000
