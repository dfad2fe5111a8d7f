#!/usr/bin/env bash
# All measurements that need a GPU. Each part writes its results before the next part starts.
#
#     benchmarks/gpu.sh DATA ENCODER OUTPUT [--quick]
#
# DATA has software.tsv, ENCODER is the encoder of benchmarks/ablation/real_gpu.yaml. --quick runs the same parts with
# tiny settings, also on a CPU. PYTHON selects the Python. PARTS selects the parts. JOBS is the number of runs of the
# ablation at a time. ENTRIES selects entries of the plan. LIMIT is the time of the ablation in seconds. The report has
# the runs that end within this time.
set -euo pipefail
data=$1 encoder=$2 output=$3 quick=${4:-}
python=${PYTHON:-python3} here=$(dirname "$0") parts=" ${PARTS:-speed tests ablation} "
mkdir -p "$output"
plan=$here/ablation/real_gpu.yaml

part() { # part NAME SECONDS COMMAND...: run a command. SECONDS is the estimated time on an H200.
    local name=$1 seconds=$2
    shift 2
    [[ $parts == *" $name "* ]] || return 0
    echo "$(date +%T) $name: about ${seconds} s"
    "$@" >"$output/gpu-$name.log" 2>&1 || echo "$name failed or was stopped. See $output/gpu-$name.log."
    tail -n 3 "$output/gpu-$name.log"
}

if [ -n "$quick" ]; then
    plan=$output/quick.yaml
    sed -E 's/^steps: .*/steps: 2/; s/^eval_steps: .*/eval_steps: 1/; s/^seeds: .*/seeds: [0]/' "$here/ablation/real_gpu.yaml" |
        sed -E 's/^learning_rates: .*/learning_rates: [1.0e-3]/; s/variants: \[prefix-init, [^]]*\]/variants: [prefix-init]/' |
        sed -E '/^experiments/i dev_lines: 4\ntest_lines: 4' | sed -E '/^- \{/d' >"$plan"
fi

part speed 500 "$python" "$here/speed.py" --only gpu-loss gpu-decoding gpu-training --rounds 1 $quick
# The tests measure nothing, so they run beside the ablation.
part tests 400 "$python" -m pytest -q -m gpu "$here/../tests/model/test_gpu.py" &
part ablation 480 timeout "${LIMIT:-480}" "$python" "$here/ablation/run.py" "$plan" --data "$data" \
    --encoder "$encoder" --output_dir "$output/ablation" --jobs "${JOBS:-10}" ${ENTRIES:+--entries $ENTRIES}
"$python" "$here/ablation/report.py" "$output/ablation" >"$output/report.log" 2>&1 || tail -n 3 "$output/report.log"
wait
