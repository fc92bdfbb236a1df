#!/bin/sh
# Exports and verifies the models of an image: export_models.sh IMPLEMENTATION. The Dockerfile's arguments say which.
set -eu
# Kept without a value being split further than at its blanks.
set -f
for model in ${MODELS}; do
    # shellcheck disable=SC2086
    /opt/export/bin/yolo-assigner export onnx --model "${model}" --out /artifacts --implementation "$1" \
        --num-classes "${NUM_CLASSES}" ${EXPORT_OPTIONS}
done
/opt/export/bin/yolo-assigner export verify /artifacts
# Where a volume with engines is mounted.
mkdir /engines
