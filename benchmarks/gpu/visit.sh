#!/bin/bash
# Measure on a bare machine with a GPU and without a network:
#   bash benchmarks/gpu/visit.sh [OPTIONS OF benchmarks.gpu]
# STEP=yes times whole training steps after that; TESTS=no leaves the tests out that follow.
# Before that, where there is a network: python -m benchmarks.gpu.pack, and carry its folder .gpu in the checkout.
# Results go to $OUT, out/gpu if not set. To go on with those of an earlier visit, put them at .gpu/gpu.json.
set -u
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python3} out=${OUT:-out/gpu} site=${SITE:-${XDG_CACHE_HOME:-$HOME/.cache}/yolo-assigner-gpu}
export PYTHONPATH=$site:$PWD PYTHONUNBUFFERED=1 YOLO_OFFLINE=true YOLO_VERBOSE=false YOLO_CONFIG_DIR=$site
mkdir -p "$out" "$site"
[ -f "$out/gpu.json" ] || cp .gpu/gpu.json "$out/" 2>/dev/null
if [ ! -f "$site/ready" ]; then
  # For another Python than the pack's pip refuses them, and the machine's own packages have to do.
  if "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .gpu/wheels/*.whl
  then
    [ ! -f .gpu/ort.tar.xz ] || "$python" -W ignore -m tarfile -e .gpu/ort.tar.xz "$site"
    touch "$site/ready"
  else echo "the pack's wheels were not installed: going on without"
  fi
fi
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.draw --format=csv,noheader 2>/dev/null
"$python" -W ignore -m benchmarks.gpu --out "$out/gpu.json" "$@" 2>&1 | tee -a "$out/log.txt" | cut -c1-240
status=${PIPESTATUS[0]}
if [ "${STEP:-no}" = yes ]; then
  "$python" -W ignore -m benchmarks.step --device cuda --out "$out/step.json" 2>&1 | tee -a "$out/log.txt" | tail -n 25
fi
if [ "${TESTS:-yes}" = yes ]; then
  # Without those that export or compile, which take minutes; the benchmark has compared the same.
  timeout -k 5 120 "$python" -m pytest -o addopts= -p no:cacheprovider -W default -q -rfE tests/gpu \
    -k "not models and not onnx_runtime and not engines and not every_way" 2>&1 | tee -a "$out/log.txt" | tail -n 25
  [ "${PIPESTATUS[0]}" = 0 ] || status=1
fi
ls -l "$out"
exit "$status"
