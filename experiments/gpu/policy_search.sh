#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The search of experiments/policy_search.py on one GPU, all environments side by side.
#
#   bash experiments/gpu/policy_search.sh FOLDER [arguments of the search]
#
# Each program launches many small kernels and fills a fraction of the device: with the
# multi-process service eight of them take little longer than the longest alone (cheetah 192 runs of
# 512,000 env steps: about two and a half minutes on an H200, a minute of it compilation).
set -euo pipefail
out=$1
shift
mkdir -p "$out"
export XLA_PYTHON_CLIENT_PREALLOCATE=false
# Trying kernels out costs more than it gains on matrices as small as these.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_autotune_level=0"
# Products of physics and policies as on a processor, not in TF32.
export JAX_DEFAULT_MATMUL_PRECISION=highest
if command -v nvidia-cuda-mps-control >/dev/null && [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then
    export CUDA_MPS_PIPE_DIRECTORY="$out/mps" CUDA_MPS_LOG_DIRECTORY="$out/mps"
    mkdir -p "$out/mps"
    nvidia-cuda-mps-control -d
    trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
for env in brax:halfcheetah brax:hopper brax:inverted_pendulum brax:inverted_double_pendulum \
    brax:reacher control:cartpole-swingup control:pendulum control:pointmass; do
    python3 -m experiments.policy_search --env "$env" --json "$out/${env/:/_}.json" "$@" &
done
wait
