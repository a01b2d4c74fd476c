#!/usr/bin/env bash
# What the kernels need from a machine with an NVIDIA GPU, from the repository's root; each step ends within nine minutes and keeps what it found so far:
#
#     bash kernels/gpu_session.sh [folder for logs [steps]]
#
# check     every op against float64                                              logs/check.json
# tests     the kernel tests on the GPU, without the fixtures that need gradio    logs/tests.txt
# bench     timings with peers under the protocol of kernels/bench/measure.py     assets/bench/<device>.json, logs/bench.txt
# tune      tiles of attention, rotation and products with 1- to 4-bit weights    assets/kernels/<device>.json
# again     the timings of those once more, with the tuned tiles                  logs/bench-tuned.txt
# sanitize  compute-sanitizer (memcheck, racecheck), where it is installed        logs/sanitizer-*.txt
#
# Without steps all of them, in this order. Needs requirements-test.txt, or torch, triton, transformers, gguf and pytest. Peers are used where they can be
# imported. A step that fails is reported, the others still run; the exit code is the number of failed steps.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=${1:-gpu-session}
shift || true
python=${PYTHON:-python}
failed=0
mkdir -p "$logs"
export TRITON_DEFAULT_FP_FUSION=1 TRITON_INTERPRET=0

step() {
    local name=$1
    shift
    echo "== $name: $*"
    timeout 540 "$@" || { echo "FAILED: $name"; failed=$((failed + 1)); }
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv | tee "$logs/gpu.txt"
for name in ${@:-check tests bench tune again sanitize}; do
    case $name in
        check) step check bash -c "$python -m kernels --check --json > '$logs/check.json'" ;;
        tests) step tests bash -c "$python -m pytest tests/test_kernels.py -k cuda --noconftest -p no:cacheprovider -rs > '$logs/tests.txt' 2>&1" ;;
        bench) step bench bash -c "$python -m kernels --peers --shapes common --rows 1,16,64,1024 --write | tee '$logs/bench.txt'" ;;
        tune)
            step tune "$python" -m kernels tune --ops kv_attention,hadamard
            step tune "$python" -m kernels tune --ops int4_matmul --shapes common --rows 1,16,64
            ;;
        again) step again bash -c "$python -m kernels --peers --ops int4_matmul,kv_attention,hadamard --shapes common --rows 1,16,64,1024 | tee '$logs/bench-tuned.txt'" ;;
        sanitize)
            command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed: skipped"; continue; }
            for tool in memcheck racecheck; do
                step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --log-file "$logs/sanitizer-$tool.txt" \
                    "$python" -m kernels --check --ops int4_matmul,w8a8_int8_matmul,kv_attention,hadamard
            done
            ;;
        *) echo "there is no step named $name" && failed=$((failed + 1)) ;;
    esac
done
exit "$failed"
