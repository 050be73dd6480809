#!/usr/bin/env bash
# Measures SEM on a machine with a GPU and without a network: bash .gpu_pack/run.sh OUT [--rehearse] [--minutes 9]
# Needs Python 3.12 with torch, torchvision, transformers, timm and accelerate. Packages that are missing are in the pack.
set -euo pipefail
start=$(date +%s)
pack=$(cd "$(dirname "$0")" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python=${PYTHON:-python3}
if [ -n "$(ls "$pack"/wheels/*.whl 2>/dev/null)" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$pack"/wheels/*.whl
fi
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --no-build-isolation --upgrade --target "$site" "$pack/.."
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$site/datasets" TOKENIZERS_PARALLELISM=false
exec_status=0
"$python" "$pack/../scripts/gpu_pack/measure.py" --pack "$pack" --start "$start" --output "$@" || exec_status=$?
exit $exec_status
