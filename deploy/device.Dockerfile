# The device side as a REST service. From the repository's root: docker build -f deploy/device.Dockerfile .
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY cloud_server cloud_server
COPY device_client device_client
COPY training training
COPY evaluation evaluation
RUN pip install -c constraints.txt .

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home ciar
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 \
    CIAR_HOST=0.0.0.0 CIAR_HTTP_PORT=8080 CIAR_MODELS=/models
USER 10001
VOLUME /models
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/livez', timeout=4)"]
CMD ["device-client", "serve"]
