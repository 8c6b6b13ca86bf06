# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced with a folder by the scripts beside it: lets several processes share one GPU.
#
# Each program launches many small kernels and fills a fraction of the device: with the
# multi-process service eight of them take little longer than the longest alone.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
# Trying kernels out costs more than it gains on matrices as small as these.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_autotune_level=0"
# Products of physics and policies as on a processor, not in TF32.
export JAX_DEFAULT_MATMUL_PRECISION=highest
if command -v nvidia-cuda-mps-control >/dev/null && [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then
    export CUDA_MPS_PIPE_DIRECTORY="$1/mps" CUDA_MPS_LOG_DIRECTORY="$1/mps"
    mkdir -p "$1/mps"
    nvidia-cuda-mps-control -d
    trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi

# Waits for everything that was started; fails if any of it did.
wait_for_all() {
    local job failed=0
    for job in $(jobs -p); do
        wait "$job" || failed=1
    done
    return "$failed"
}
