#!/usr/bin/env bash
# What one GPU does, in 12 minutes: benchmarks/gpu.sh [--smoke] [--prepare] [RESULTS]
#
#   --prepare   makes the dataset of the optimizers, on CPUs and outside the 12 minutes; else the first run does
#   --smoke     the same parts with tiny sizes, on CPUs too: that nothing fails but for want of the card
#   RESULTS     file that the output is appended to; default benchmarks/gpu-results.md
#
# It needs `make setup` with JAX for CUDA in .venv (requirements/trainer-gpu.txt) and, for PyTorch, `make peers`; no network.
# GPT2_BENCHMARK_TEXT names a folder of text for the optimizers; default: the documentation of Python.
# Each part has its budget of seconds. One that fails or exceeds it says so, and the next one starts.
set -uo pipefail
cd "$(dirname "$0")/.."

smoke='' prepare='' results=benchmarks/gpu-results.md
for argument in "$@"; do
  case $argument in
    --smoke) smoke=1 ;;
    --prepare) prepare=1 ;;
    -*) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) results=$argument ;;
  esac
done
mkdir -p "$(dirname "$results")"

python=.venv/bin/python
out=${GPT2_BENCHMARK_FOLDER:-.gpt2/benchmark-gpu}
text=(${GPT2_BENCHMARK_TEXT:+--text "$GPT2_BENCHMARK_TEXT"} --megabytes 20)
slower=1
train=124M-1024 large=1558M generate=124M model=12x768 tokens=80000000
if [ "$smoke" ]; then
  out=$out-smoke text=(--megabytes 0.2)
  # A busy machine without a card is no failure.
  slower=10
  train=small large=small generate=small model=2x64 tokens=8192
fi
quality=("$python" benchmarks/quality.py --out "$out" "${text[@]}" --table optimizers)
if [ "$prepare" ]; then
  exec "${quality[@]}" --prepare
fi

# Contenders take turns on one card, so that none may reserve its memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2
failed=0

# part TITLE SECONDS COMMAND...
part() {
  local title=$1 seconds=$(($2 * slower)) began=$SECONDS status=0
  shift 2
  printf '\n### %s\n\n' "$title"
  timeout --kill-after 10 "$seconds" "$@" 2>&1 || status=$?
  case $status in
    0) printf '\n(%d of %d s)\n' $((SECONDS - began)) "$seconds" ;;
    124 | 137) printf '\nNot finished within its %d s.\n' "$seconds"; failed=$((failed + 1)) ;;
    *) printf '\nFailed with status %d after %d s.\n' "$status" $((SECONDS - began)); failed=$((failed + 1)) ;;
  esac
}

run() {
  printf '\n## %s, revision %s%s\n\n' "$(date --utc +%FT%TZ)" "$(git describe --always --dirty 2>/dev/null || echo unknown)" \
    "${smoke:+, smoke test}"
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null || echo 'no GPU'
  [ -d .peers ] || echo 'no PyTorch to compare with: make peers'
  part "Training, $train, bfloat16" 120 "$python" benchmarks/train.py --size "$train" --precision bfloat16 --rounds 3 \
    --only 'ours jax' --only 'pytorch flash'
  part "Training, $large on one card, bfloat16" 150 "$python" benchmarks/train.py --size "$large" --precision bfloat16 \
    --rounds 2 --only 'ours jax'
  part "Generation, $generate" 60 "$python" benchmarks/generate.py --size "$generate" --only 'ours jax' --rounds 3
  part "AdamW and Muon, $tokens tokens each" 390 "${quality[@]}" --model "$model" --tokens "$tokens" --max-seconds 170
  printf '\nFailed parts: %d; all took %d s.\n' "$failed" "$SECONDS"
  return "$failed"
}

run | tee -a "$results"
exit "${PIPESTATUS[0]}"
