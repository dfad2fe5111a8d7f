#!/usr/bin/env bash
# All measurements that need a GPU, the most important first. Each part writes its results before the next part starts.
#
#     benchmarks/gpu.sh DATA ENCODER OUTPUT [--quick]
#
# DATA has software.tsv, ENCODER is the encoder of benchmarks/ablation/real_gpu.yaml. --quick runs the same parts with
# tiny settings, also on a CPU. PYTHON selects the Python. JOBS is the number of runs of the ablation at a time.
set -euo pipefail
data=$1 encoder=$2 output=$3 quick=${4:-}
python=${PYTHON:-python3} here=$(dirname "$0")
mkdir -p "$output"
plan=$here/ablation/real_gpu.yaml

part() { # part NAME SECONDS COMMAND...: run a command, of which an H200 takes SECONDS by estimate
    local name=$1 seconds=$2
    shift 2
    echo "$(date +%T) $name: about ${seconds} s"
    "$@" >"$output/$name.log" 2>&1 || echo "$name failed. See $output/$name.log."
    tail -n 3 "$output/$name.log"
}

if [ -n "$quick" ]; then
    plan=$output/quick.yaml
    sed -E 's/^steps: .*/steps: 2/; s/^eval_steps: .*/eval_steps: 1/; s/^seeds: .*/seeds: [0]/' "$here/ablation/real_gpu.yaml" |
        sed -E 's/^learning_rates: .*/learning_rates: [1.0e-3]/; s/variants: \[prefix-init, [^]]*\]/variants: [prefix-init]/' |
        sed -E '/^experiments/i dev_lines: 4\ntest_lines: 4' | sed -E '/^- \{/d; /^- &one_seed/d' >"$plan"
fi

part gpu-tests 60 "$python" -m pytest -q -m gpu tests
part gpu-speed 150 "$python" "$here/speed.py" --only gpu-training gpu-decoding gpu-loss --rounds 1 $quick
part gpu-ablation 360 "$python" "$here/ablation/run.py" "$plan" --data "$data" --encoder "$encoder" \
    --output_dir "$output/ablation" --jobs "${JOBS:-8}"
# A part that was stopped has no report yet.
"$python" "$here/ablation/report.py" "$output/ablation" >"$output/report.log" || true
