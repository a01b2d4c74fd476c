#!/usr/bin/env bash
# Everything the kernels need from a machine with an NVIDIA GPU, in one run of about 25 minutes, from the repository's root:
#
#     bash kernels/gpu_session.sh [folder for logs]
#
# 1. the kernel tests on the GPU, and every op against float64                    logs/tests.txt, logs/check.json
# 2. compute-sanitizer (memcheck, racecheck) over the checks, where it is there   logs/sanitizer-*.txt
# 3. tiles for the common shapes and those of two models                          assets/kernels/<device>.json
# 4. timings with peers under the protocol of kernels/bench/measure.py            assets/bench/<device>.json
#
# Needs requirements-test.txt, or torch, triton, transformers and pytest. A step that fails is reported, the others still run; the exit code is the number of failed steps.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=${1:-gpu-session}
python=${PYTHON:-python}
failed=0
mkdir -p "$logs"
export TRITON_DEFAULT_FP_FUSION=1 TRITON_INTERPRET=0

step() {
    local name=$1
    shift
    echo "== $name: $*"
    "$@" || { echo "FAILED: $name"; failed=$((failed + 1)); }
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv | tee "$logs/gpu.txt"
step check bash -c "$python -m kernels --check --json > '$logs/check.json'"
step tests bash -c "$python -m pytest tests/test_kernels.py -k cuda -p no:cacheprovider -rs > '$logs/tests.txt' 2>&1"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        step "$tool" timeout 300 compute-sanitizer --tool "$tool" --error-exitcode 9 --log-file "$logs/sanitizer-$tool.txt" \
            "$python" -m kernels --check --ops int4_matmul,w8a8_int8_matmul,kv_attention,hadamard
    done
else
    echo "compute-sanitizer is not installed: skipped"
fi
step tune "$python" -m kernels tune --shapes common --rows 1,16,64,1024
step bench bash -c "$python -m kernels --peers --shapes common,llama-3.1-8b --rows 1,4,16,64,256,1024 --write | tee '$logs/bench.txt'"
exit "$failed"
