#!/usr/bin/env bash
# Measures SEM on a machine with a GPU and without a network: bash .gpu_pack/run.sh OUT [--rehearse] [--minutes 9]
# Needs Python 3.12 with torch, torchvision, accelerate and what transformers depends on. The packages of the pack are used in place
# of those of the machine, which may be older than SEM needs.
set -euo pipefail
start=$(date +%s)
pack=$(cd "$(dirname "$0")" && pwd)
repository=$(dirname "$pack")
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python=${PYTHON:-python3}
install() { "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$@"; }
unpack="import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='data')"
if [[ -f $pack/packages.tar.xz ]]; then "$python" -c "$unpack" "$pack/packages.tar.xz" "$site"; fi
install --no-build-isolation "$repository"  # for its metadata; the code is that of the repository, whose commit is noted
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0="$repository"
export PYTHONPATH="$repository/src:$site" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$site/datasets" TOKENIZERS_PARALLELISM=false
"$python" "$repository/scripts/gpu_pack/measure.py" --pack "$pack" --start "$start" --output "$@"
