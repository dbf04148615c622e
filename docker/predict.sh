#!/bin/sh
# FLARE22's form: each scan inputs/CASE_0000.nii.gz becomes a label map outputs/CASE.nii.gz.
#
# models/reference.zip predicts; with models/stcn.zip beside it, its slices fill the scan, as
# published. Words after the script go to contextseg, such as `--profile`. A scan that cannot be
# segmented does not stop the others; the status is then not 0.
set -eu

inputs=${INPUTS:-/workspace/inputs}
outputs=${OUTPUTS:-/workspace/outputs}
models=${MODELS:-/workspace/models}

if [ ! -e "$models/reference.zip" ]; then
    echo "predict.sh: no $models/reference.zip; make it by \`contextseg export RUN reference.zip\`" >&2
    exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

status=0
if [ -e "$models/stcn.zip" ]; then
    contextseg two-stage "$models/reference.zip" --input "$inputs" --output "$work/maps" \
        --model "$models/stcn.zip" --published "$@" || status=$?
else
    contextseg predict "$models/reference.zip" --input "$inputs" --output "$work/maps" "$@" ||
        status=$?
fi

for map in "$work"/maps/*.nii.gz "$work"/maps/*.csv; do
    if [ -e "$map" ]; then
        cp "$map" "$outputs/"
    fi
done
exit "$status"
