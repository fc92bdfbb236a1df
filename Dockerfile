# Exports the models in one stage (torch) and serves them from another (no torch).
#   docker build -t yolo-assigner .
#   docker run --rm -p 8000:8000 yolo-assigner
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
# Words for pip, for example an index with torch's CPU build, which is much smaller than the default one.
ARG PIP_FLAGS=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY yolo_loss yolo_loss
COPY models models
COPY export export
COPY serve serve

FROM build AS artifacts
ARG NUM_CLASSES=80
ARG PRESET=yolov8
# onnxruntime's Linux packages report their use to their maker unless told not to.
ENV ORT_DISABLE_TELEMETRY=1
RUN python3 -m venv /opt/export \
    && /opt/export/bin/pip install --no-cache-dir ${PIP_FLAGS} -c constraints.txt ".[export,cpu]"
WORKDIR /
RUN for model in assigner loss; do \
        /opt/export/bin/python -m export onnx --model "$model" --out /artifacts \
            --num-classes "${NUM_CLASSES}" --preset "${PRESET}" || exit 1; \
    done \
    && /opt/export/bin/python -m export verify /artifacts

FROM build AS installed
RUN python3 -m venv /opt/serve \
    && /opt/serve/bin/pip install --no-cache-dir ${PIP_FLAGS} -c constraints.txt ".[cpu]"

FROM ${BASE_IMAGE} AS serve
COPY --from=installed /opt/serve /opt/serve
COPY --from=artifacts /artifacts /artifacts
USER 65534:65534
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=20s CMD ["/opt/serve/bin/python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
# The address is any inside the container; publish the port only where its callers are trusted: there are no keys yet.
ENTRYPOINT ["/opt/serve/bin/python", "-m", "serve", "--artifacts", "/artifacts", "--host", "0.0.0.0", "--port", "8000"]
