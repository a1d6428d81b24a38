# The gateway: no torch. Build from the repository's root: docker build -f docker/gateway.Dockerfile .
FROM python:3.11-slim
WORKDIR /srv/aimass
COPY constraints.txt pyproject.toml README.md ./
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-cache-dir --constraint constraints.txt '.[gateway]' \
    && useradd --system --create-home --home-dir /var/lib/aimass aimass
USER aimass
ENV AIMASS_DATA_DIR=/var/lib/aimass AIMASS_GATEWAY_HOST=0.0.0.0
VOLUME /var/lib/aimass
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["python", "-m", "app.gateway.main"]
