# The worker: no FastAPI. Build from the repository's root: docker build -f docker/worker.Dockerfile .
FROM python:3.11-slim
# LightGBM needs the OpenMP runtime.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
WORKDIR /srv/aimass
COPY constraints.txt pyproject.toml README.md ./
COPY app app
COPY workers workers
COPY migrations migrations
# The CPU build; for GPUs build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" torch==2.13.0 \
    && pip install --no-cache-dir --constraint constraints.txt '.[worker]' \
    && useradd --system --create-home --home-dir /var/lib/aimass aimass
USER aimass
ENV AIMASS_DATA_DIR=/var/lib/aimass
CMD ["python", "-m", "workers.agent"]
