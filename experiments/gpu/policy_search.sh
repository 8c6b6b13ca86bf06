#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The search of experiments/policy_search.py on one GPU, all environments side by side.
#
#   bash experiments/gpu/policy_search.sh FOLDER [arguments of the search]
#
# The longest, cheetah with 192 runs of 512,000 env steps, takes about two and a half minutes on an
# H200, a minute of it compilation.
set -euo pipefail
out=$1
shift
mkdir -p "$out"
# shellcheck source=experiments/gpu/share_device.sh
source "$(dirname "$0")/share_device.sh" "$out"
for env in brax:halfcheetah brax:hopper brax:inverted_pendulum brax:inverted_double_pendulum \
    brax:reacher control:cartpole-swingup control:pendulum control:pointmass; do
    python3 -m experiments.policy_search --env "$env" --json "$out/${env/:/_}.json" "$@" &
done
wait_for_all
