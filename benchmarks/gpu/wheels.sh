#!/usr/bin/env bash
# Collects, into FOLDER, what a bare GPU machine (Python 3.12, torch, numpy, scipy, pandas, matplotlib,
# scikit-image, pytest) lacks: about 25 MB. Left out are SimpleITK and GDCM, which are large, and
# which nothing that is measured reads with.
#
#     benchmarks/gpu/wheels.sh FOLDER
set -euo pipefail
folder=${1:?give a folder for the wheels}
python=${PYTHON:-python3}
mkdir -p "$folder"
here=$(cd "$(dirname "$0")/.." && pwd)

platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${name}_x86_64")
done
pinned() { # name==version, as in the constraints of the project or of the benchmarks
  grep -ihE "^$1==" "$here/../constraints.txt" "$here/requirements.txt" | head -n 1 || true
}
for name in nibabel edt connected-components-3d isal pydicom typer rich \
    nnunetv2 batchgenerators batchgeneratorsv2 dynamic_network_architectures blosc2 \
    ndindex msgpack numexpr httpx httpcore idna sniffio fft-conv-pytorch; do
  wanted=$(pinned "$name")
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp "${platforms[@]}" --dest "$folder" "${wanted:-$name}"
done
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" "$(pinned acvl_utils)"
du -sh "$folder"
