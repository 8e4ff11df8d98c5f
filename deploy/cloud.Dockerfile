# The cloud server. Build from the repository's root: docker build -f deploy/cloud.Dockerfile -t ciar-cloud .
# With EXTRA=ray the image also holds ciar-ray.
FROM python:3.11-slim AS build
ARG EXTRA=""
WORKDIR /src
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY cloud_server cloud_server
COPY device_client device_client
COPY training training
COPY evaluation evaluation
RUN pip install -c constraints.txt ".${EXTRA:+[$EXTRA]}"

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home ciar
COPY --from=build /venv /venv
COPY deploy/health.py /usr/local/lib/ciar-health.py
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 \
    CIAR_HOST=0.0.0.0 CIAR_PORT=50051 CIAR_MODELS=/models CIAR_METRICS_PORT=9100 CIAR_METRICS_HOST=0.0.0.0
USER 10001
VOLUME /models
EXPOSE 50051 9100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "/usr/local/lib/ciar-health.py", "127.0.0.1:50051"]
CMD ["cloud-server"]
