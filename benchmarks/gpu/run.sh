#!/usr/bin/env bash
# All of it by one command, from the root of the repository:
#
#     benchmarks/gpu/run.sh OUTPUT [--dry] [--seconds N] [STEP ...]
#
# WHEELS names the folder that wheels.sh filled; without one, what is installed is used.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
if [[ -n ${WHEELS:-} ]]; then
  site=${SITE:-$(mktemp -d)/site}
  if [[ ! -d $site ]]; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
      --target "$site" "$WHEELS"/*.whl
    # nnU-Net imports SimpleITK, and reads nothing with it here.
    "$python" -c 'import SimpleITK' 2>/dev/null || touch "$site/SimpleITK.py"
  fi
  export PYTHONPATH=$root/src:$site${PYTHONPATH:+:$PYTHONPATH}
else
  export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$python" "$root/benchmarks/gpu/steps.py" "$@"
