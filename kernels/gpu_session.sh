#!/usr/bin/env bash
# What this project wants to know of a machine with an NVIDIA GPU, from the repository's root, the most valuable first:
#
#     bash kernels/gpu_session.sh [folder for logs [steps]]
#
# needs     what must be there, its versions, and how this Triton lays out bytes; uses no GPU         logs/needs.txt, logs/layouts.txt
# check     every op against float64, each op in a process of its own (most of it is compiling)     logs/check-*.json
# tokens    a captured token loop beside the same launch by launch and beside the CPU, kv 16 and 4    logs/tokens.txt
# w4        4-bit products of 8192 x 8192 beside cuBLAS, tinygemm and others that can be imported   assets/bench/<device>.json, logs/w4.txt
# decode    tokens/s and what limits them, Llama-3.1-8B's shapes: 16 bits, 4 bits, and 8 bits       logs/decode-*.json, logs/decode.txt
# tests     the kernel tests on the GPU, outputs poisoned, without the fixtures that need gradio    logs/tests.txt
# quantize  seconds that GPTQ, AWQ and HQQ take for the shapes of that model's layers               logs/quantize.json
# model     the bundled model from end to end: quality, memory and speed by method, on the GPU      logs/model-*.json
# large     a 13.5 GB checkpoint, quantized block by block in 8 GB of the GPU                       assets/large.json
# bench     the other ops, then the other shapes                                                    assets/bench/<device>.json, logs/bench.txt
# tune      tiles of products with few rows, of attention and of rotation                           assets/kernels/<device>.json
# again     w4 and decode in 4 bits once more, with the tuned tiles                                 logs/w4-tuned.txt, logs/decode-tuned.json
# sanitize  compute-sanitizer (memcheck, racecheck), where it is installed                          logs/sanitizer-*.txt
#
# Without steps all of them, in this order, in at most $SECONDS_AT_MOST, 1620 by default. Where a machine is lent in calls of ten minutes, three calls
# with SECONDS_AT_MOST=550 hold them: "needs check tokens w4 decode tests", "quantize model large bench", "tune again sanitize". A step ends at its own limit and keeps what
# it found; one that fails is reported and the others still run; the exit code is the number of failed steps. Logs, timings and tiles also go into one
# archive, logs/session.tar.gz.
#
# Needs torch, triton, transformers, accelerate and pytest, with what these bring, python3 or $PYTHON; `needs` names what is missing. Inline assembly tells
# bytes apart by their place in a register, which Triton's layouts decide: where `layouts` fails, numbers of low bits are wrong. `python -m tests.gpu_rehearsal`
# compiles beforehand, with no GPU, all that `check` will launch.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=${1:-gpu-session}
shift || true
python=${PYTHON:-python3}
failed=0
mkdir -p "$logs"
export TRITON_DEFAULT_FP_FUSION=1 TRITON_INTERPRET=0 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PATH="$PATH:/usr/local/cuda/bin"
llama=arch:llama-3.1-8b
four=(--method rtn --bits 4 --group-size 128)
ops=(int4_matmul int8_matmul w8a8_int8_matmul w8a8_fp8_matmul block_float_matmul kv_attention hadamard round_inputs round_blocks)

ends=$((SECONDS + ${SECONDS_AT_MOST:-1620}))

left() { # left <seconds>: as many, or what is left of the session
    local rest=$((ends - SECONDS))
    echo $((rest < $1 ? rest : $1))
}

fails() {
    echo "FAILED: $*" >&2
    failed=$((failed + 1))
}

step() { # step <name> <seconds> <command...>
    local name=$1 limit
    limit=$(left "$2")
    shift 2
    echo "== $name ($(date +%T)): $*" >&2
    ((limit > 5)) || { fails "$name: no time is left" && return; }
    timeout "$limit" "$@" || fails "$name (exit code $?)"
}

needs() {
    local capability
    "$python" - <<'PY' 2>&1 | tee "$logs/needs.txt"
import importlib, platform, re, sys
from pathlib import Path
pins = dict(re.findall(r"^([\w-]+)([=<>!~][^;\n]*)", Path("requirements.txt").read_text(), re.M))
missing = []
print("python", platform.python_version())
for name in ("torch", "triton", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pytest"):
    try:
        print(name, importlib.import_module(name).__version__, "wanted", pins.get(name, "any"))
    except ImportError as error:
        missing.append(f"{name} ({error})")
for name in ("kernels.__main__", "explorer.commands.run", "explorer.experiment", "tests.graph_tokens", "tests.quantizer_peers", "tests.big_model"):
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"what {name} needs ({error})")
sys.exit(f"missing: {', '.join(missing)}" if missing else 0)
PY
    ((PIPESTATUS[0] == 0)) || fails "needs: see $logs/needs.txt"
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ')
    step layouts 90 bash -c "set -o pipefail; CUDA_VISIBLE_DEVICES= $python -m tests.gpu_rehearsal --few ${capability:-90} int4_matmul int8_matmul block_float_matmul kv_attention 2>&1 | tee '$logs/layouts.txt'"
}

check_all() {
    local running=() op limit
    limit=$(left 240)
    echo "== check ($(date +%T))" >&2
    for op in "${ops[@]}"; do
        timeout "$limit" "$python" -m kernels --check --ops "$op" --json >"$logs/check-$op.json" 2>"$logs/check-$op.err" &
        running+=("$!:$op")
    done
    for op in "${running[@]}"; do
        wait "${op%%:*}" || { fails "check of ${op#*:}, see $logs/check-${op#*:}.json" && tail -n 3 "$logs/check-${op#*:}.err" >&2; }
    done
}

speed() { # speed <name> <seconds> <flags of a configuration...>
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$python" -m explorer speed --store "$logs/results.db" --model "$llama" --json "$@" >"$logs/$name.json" 2>"$logs/$name.err"
    grep "^FAILED" -B 2 "$logs/$name.err"
    "$python" - "$logs/$name.json" <<'PY' | tee -a "$logs/decode.txt"
import json, sys
try:
    data = json.load(open(sys.argv[1]))
except ValueError:
    sys.exit(f"{sys.argv[1]} holds no result")
step = data["step"]
print(f"{data['provenance']['device']}: {data['label']}, {data['loop']}: {1 / step['p50']:.1f} tokens/s (median of {len(step['latencies'])}, p95 {1e3 * step['p95']:.3f} ms)")
for op in data["ops"]:
    rate = op["bytes"] / op["seconds"] / 1e9
    print(f"    {op['op']:26s} {1e3 * op['seconds']:8.3f} ms {rate:7.0f} GB/s, {rate * 1e9 / data['roof']['copy']:4.0%} of a copy, {op['kernel']}")
print(f"    {data['sentence']}")
PY
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv | tee "$logs/gpu.txt"
for name in ${@:-needs check tokens w4 decode tests quantize model large bench tune again sanitize}; do
    case $name in
        needs) needs ;;
        check) check_all ;;
        tokens) step tokens 90 bash -c "set -o pipefail; $python -m tests.graph_tokens 2> '$logs/tokens.err' | tee '$logs/tokens.txt'" ;;
        tests)
            step tests 150 bash -c "$python -m pytest tests/test_kernels.py -k cuda --noconftest -p no:cacheprovider -o filterwarnings=default -rs > '$logs/tests.txt' 2>&1"
            tail -n 3 "$logs/tests.txt"
            ;;
        w4) step w4 150 bash -c "$python -m kernels --peers --ops int4_matmul --shapes 8192 --rows 1,16,64,1024 --write --add | tee '$logs/w4.txt'" ;;
        decode)
            speed decode-16 80 --method none
            speed decode-4 80 "${four[@]}"
            speed decode-4-head-4 80 "${four[@]}" --head-bits 4
            speed decode-8 80 --method rtn --bits 8 --granularity channel
            ;;
        quantize) step quantize 200 bash -c "$python -m tests.quantizer_peers --device cuda --repeats 2 --limit 40 --methods 'GPTQ act-order,AWQ scales,HQQ' --shapes 4096x4096,14336x4096,4096x14336 | tee '$logs/quantize.json'" ;;
        model)
            for method in rtn gptq awq hqq; do
                step "model $method" 80 bash -c "$python -m explorer run --store '$logs/results.db' --method $method --json > '$logs/model-$method.json' 2> '$logs/model-$method.err'"
            done
            ;;
        large) step large 120 "$python" -m tests.big_model --gigabytes 13.5 --methods rtn --offloaded --device cuda --limit 8 --score 512 --write ;;
        bench)
            rest=w8a8_fp8_matmul,w8a8_int8_matmul,block_float_matmul,int8_matmul,kv_attention,hadamard,round_inputs,round_blocks
            step "bench of the other ops" 180 bash -c "$python -m kernels --peers --ops $rest --shapes 8192 --rows 1,16,1024,8192 --write --add | tee '$logs/bench.txt'"
            step "bench of the other shapes" 120 bash -c "$python -m kernels --peers --ops int4_matmul --format '4-bit g128' --shapes layer --rows 1,16,64,1024 --write --add | tee -a '$logs/bench.txt'"
            ;;
        tune)
            step "tune products" 200 "$python" -m kernels tune --ops int4_matmul --format '4-bit g128' --shapes 8192,llama-3.1-8b --rows 1
            step "tune the others" 60 "$python" -m kernels tune --ops kv_attention,hadamard
            ;;
        again)
            step again 80 bash -c "$python -m kernels --peers --ops int4_matmul --format '4-bit g128' --shapes 8192 --rows 1,16 | tee '$logs/w4-tuned.txt'"
            speed decode-tuned 80 "${four[@]}"
            ;;
        sanitize)
            command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed: skipped"; continue; }
            for tool in memcheck racecheck; do # without torch's allocator, inside whose blocks a step beyond the end would not be seen
                step "$tool" 75 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 --log-file "$logs/sanitizer-$tool.txt" \
                    "$python" -m kernels --check --ops kv_attention,w8a8_int8_matmul,hadamard,round_inputs,round_blocks,int8_matmul
                step "$tool of low bits" 75 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
                    --log-file "$logs/sanitizer-$tool-low-bits.txt" "$python" -m kernels --check --every 7 --ops int4_matmul,block_float_matmul
            done
            ;;
        *) echo "there is no step named $name" && failed=$((failed + 1)) ;;
    esac
done
archive=$(mktemp)
tar czPf "$archive" --exclude=session.tar.gz --exclude='results.db*' "$logs" assets/bench $(ls -d assets/kernels assets/large.json 2>/dev/null)
mv "$archive" "$logs/session.tar.gz"
exit "$failed"
