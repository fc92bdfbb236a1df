# One stage exports the models with torch, another serves them without. Targets: cpu, the default, and gpu.
#   docker build --target cpu --tag yolo-assigner:cpu .
# docs/deploy.md has the arguments and the ways to run it.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG GPU_BASE_IMAGE=${BASE_IMAGE}

FROM ${BASE_IMAGE} AS wheel
# Words for pip, for example an index with torch's CPU build, which is much smaller than the default one.
ARG PIP_FLAGS=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY yolo_loss yolo_loss
COPY models models
COPY audit audit
COPY export export
COPY serve serve
COPY yolo_assigner yolo_assigner
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip wheel --no-cache-dir --no-deps ${PIP_FLAGS} --wheel-dir /wheel .

FROM wheel AS export
ARG PIP_FLAGS=""
RUN python3 -m venv /opt/export \
    && /opt/export/bin/pip install --no-cache-dir ${PIP_FLAGS} -c constraints.txt \
        "$(echo /wheel/*.whl)[export]" onnxruntime
ARG MODELS="assigner loss loss_grad"
ARG NUM_CLASSES=80
# Further words for `yolo-assigner export onnx`.
ARG EXPORT_OPTIONS=""
# An argument ends with its stage, a variable does not.
ENV MODELS=${MODELS} NUM_CLASSES=${NUM_CLASSES} EXPORT_OPTIONS=${EXPORT_OPTIONS}
WORKDIR /
COPY deploy/export_models.sh /opt/export_models.sh

FROM export AS models-cpu
RUN sh /opt/export_models.sh sparse

# TensorRT takes no other implementation. ONNX Runtime runs these where there is no engine.
FROM export AS models-gpu
RUN sh /opt/export_models.sh dense

# Packages bring their own tests, an eighth of all; nothing imports them.
FROM wheel AS environment-cpu
ARG PIP_FLAGS=""
RUN python3 -m venv --without-pip /opt/serve \
    && /opt/build/bin/pip --python /opt/serve/bin/python install --no-cache-dir ${PIP_FLAGS} -c constraints.txt \
        "$(echo /wheel/*.whl)[cpu]" \
    && find /opt/serve -type d \( -name tests -o -path "*/onnx/backend/test" \) -prune -exec rm -r {} +

FROM ${GPU_BASE_IMAGE} AS environment-gpu
ARG PIP_FLAGS=""
# tensorrt or tensorrt-rtx: from NVIDIA's packages; base: the TensorRT of the base image; none.
ARG TENSORRT=tensorrt
WORKDIR /src
COPY constraints.txt ./
COPY --from=wheel /wheel /wheel
# Such a base may have no pip, or one that must not be used outside an environment.
COPY --from=wheel /opt/build/lib/python3*/site-packages/pip /opt/pip/pip
RUN case "${TENSORRT}" in \
        tensorrt|tensorrt-rtx) extras="gpu,${TENSORRT}"; packages="" ;; \
        base) extras="gpu,tensorrt"; packages="--system-site-packages"; \
            python3 -c "from importlib.metadata import version; print(version('tensorrt'))" || exit 1 ;; \
        none) extras="gpu"; packages="" ;; \
        *) echo "TENSORRT is '${TENSORRT}'; choose tensorrt, tensorrt-rtx, base or none" >&2; exit 1 ;; \
    esac \
    && python3 -m venv --without-pip ${packages} /opt/serve \
    && PYTHONPATH=/opt/pip python3 -m pip --python /opt/serve/bin/python install --no-cache-dir ${PIP_FLAGS} \
        -c constraints.txt "$(echo /wheel/*.whl)[${extras}]" \
    && find /opt/serve -type d \( -name tests -o -path "*/onnx/backend/test" \) -prune -exec rm -r {} +

FROM ${GPU_BASE_IMAGE} AS gpu
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="yolo-assigner" \
    org.opencontainers.image.description="YOLOv8 label assignment and detection loss over HTTP, for GPUs" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=environment-gpu /opt/serve /opt/serve
COPY --from=models-gpu /artifacts /artifacts
COPY --from=models-gpu --chown=10001:10001 /engines /artifacts/engines
COPY deploy/__init__.py deploy/entrypoint.py deploy/engines.py /opt/image/deploy/
USER 10001:10001
# The home folder is where libraries keep what they compiled; only /tmp can be written.
ENV PATH=/opt/serve/bin:${PATH} HOME=/tmp PYTHONPATH=/opt/image \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    YOLO_ASSIGNER_ARTIFACTS=/artifacts YOLO_ASSIGNER_HOST=0.0.0.0 YOLO_ASSIGNER_PORT=8000 \
    YOLO_ASSIGNER_METRICS_HOST=0.0.0.0 YOLO_ASSIGNER_METRICS_PORT=8002
EXPOSE 8000 8002
STOPSIGNAL SIGTERM
# Building engines takes minutes; a service that is up before counts as healthy at once.
HEALTHCHECK --start-period=30m --interval=10s --timeout=5s \
    CMD ["/opt/serve/bin/python", "-m", "deploy.entrypoint", "health"]
ENTRYPOINT ["/opt/serve/bin/python", "-m", "deploy.entrypoint"]
CMD ["serve"]

FROM ${BASE_IMAGE} AS cpu
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="yolo-assigner" \
    org.opencontainers.image.description="YOLOv8 label assignment and detection loss over HTTP" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=environment-cpu /opt/serve /opt/serve
COPY --from=models-cpu /artifacts /artifacts
COPY deploy/__init__.py deploy/entrypoint.py deploy/engines.py /opt/image/deploy/
USER 10001:10001
ENV PATH=/opt/serve/bin:${PATH} HOME=/tmp PYTHONPATH=/opt/image \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 \
    YOLO_ASSIGNER_ARTIFACTS=/artifacts YOLO_ASSIGNER_HOST=0.0.0.0 YOLO_ASSIGNER_PORT=8000 \
    YOLO_ASSIGNER_METRICS_HOST=0.0.0.0 YOLO_ASSIGNER_METRICS_PORT=8002
EXPOSE 8000 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=1m --interval=10s --timeout=5s \
    CMD ["/opt/serve/bin/python", "-m", "deploy.entrypoint", "health"]
ENTRYPOINT ["/opt/serve/bin/python", "-m", "deploy.entrypoint"]
CMD ["serve"]
