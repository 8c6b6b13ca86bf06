#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Three meta-seeds of the policy recipe side by side on one GPU, in pieces that resume.
#
#   bash experiments/gpu/meta_train_rl.sh FOLDER [OUTER_STEPS] [WORKERS]
#
# A second call with the same folder goes on where the first was stopped: the last validation is the
# last checkpoint. Not measured yet: written on a machine without a GPU.
set -euo pipefail
out=$1
steps=${2:-200}
workers=${3:-32}
mkdir -p "$out"
# shellcheck source=experiments/gpu/share_device.sh
source "$(dirname "$0")/share_device.sh" "$out"
for seed in 0 1 2; do
    folder="$out/seed$seed"
    if [ -f "$folder/settings.json" ]; then
        how=(--resume)
    else
        how=(--recipe rl --outer-steps "$steps" --workers "$workers" --seed "$seed")
    fi
    python3 -m mnemosyne.cli.main meta-train "${how[@]}" --out "$folder" >"$folder.log" 2>&1 &
done
wait_for_all
