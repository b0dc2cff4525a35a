#!/usr/bin/env bash
# usage: bash scripts/bench_gpu.sh OUT [NANOGPT/model.py [NVIDIA/model.py]]
#
# Every figure of docs/performance.md that needs a GPU of 80 GB: both arms at 0.5B x {1k, 4k, 8k} and 1B x {1k, 4k}, fp8, and
# the models of nanoGPT and NVIDIA/ngpt on the same card. Writes OUT/NAME.json, NAME.txt and NAME.log.
#
# Ends after SECONDS_LEFT (default 570); what is finished is not done again, and compiled graphs are kept in OUT/compiled, so
# the same command continues. Paths are as seen from where the command is given.
set -euo pipefail
usage() { sed -n '2,/^set/{/^# \{0,1\}/s///p}' "$0"; }
case ${1:-} in
  -h | --help) usage; exit 0 ;;
  "" | -*) usage >&2; exit 2 ;;
esac
if ! command -v nvidia-smi > /dev/null; then echo "error: nvidia-smi: not found; this needs an NVIDIA GPU" >&2; exit 2; fi
mkdir -p "$1"
out=$(realpath "$1")
nanogpt=${2:+$(realpath "$2")} nvidia=${3:+$(realpath "$3")}
cd "$(dirname "$0")/.."
deadline=$((SECONDS + ${SECONDS_LEFT:-570}))
export TORCHINDUCTOR_CACHE_DIR="$out/compiled" TORCHINDUCTOR_FX_GRAPH_CACHE=1
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv > "$out/gpu.csv"

bench() { # NAME ARGUMENTS...
  local name=$1 left=$((deadline - SECONDS))
  shift
  if [ -s "$out/$name.json" ]; then return; fi
  if [ "$left" -lt 30 ]; then echo "$name: no time left; the same command continues"; return; fi
  echo "== $name: python scripts/bench.py $*"
  if ! timeout "$left" python scripts/bench.py rounds=8 memory=true json="$out/$name.json" "$@" > "$out/$name.txt" 2> "$out/$name.log"; then
    echo "$name: failed or out of time, see $out/$name.log"
    tail -n 1 "$out/$name.log"
  fi
  cat "$out/$name.txt"
}

# Two micro batches a step: accumulation is in it, and the optimizer counts for more than in training, not for less.
bench 0.5b-1k size=0.5b context=1k micro_batch_size=16 global_batch_size=32
bench 0.5b-4k size=0.5b context=4k micro_batch_size=4 global_batch_size=8
if [ -n "$nanogpt" ]; then # eager: its file compiles as one graph of 24 unrolled layers, which takes minutes
  bench nanogpt-1k size=0.5b context=1k micro_batch_size=16 global_batch_size=32 arms=gpt,nanogpt:eager nanogpt="$nanogpt"
fi
bench 1b-4k size=1b context=4k micro_batch_size=2 global_batch_size=4
bench 0.5b-8k size=0.5b context=8k micro_batch_size=2 global_batch_size=4
bench 1b-1k size=1b context=1k micro_batch_size=8 global_batch_size=16
if [ -n "$nvidia" ]; then # eager, as their launcher runs them
  bench nvidia-1k size=0.5b context=1k micro_batch_size=8 global_batch_size=16 nvidia="$nvidia" \
    arms=gpt,ngpt,nvidia_gpt:eager,nvidia_ngpt:eager
fi
bench fp8-1k size=0.5b context=1k micro_batch_size=16 global_batch_size=32 precision=fp8
bench phases-8-ranks-batch size=0.5b context=1k micro_batch_size=16 global_batch_size=64 profile="$out/profile"
if [ -n "$nanogpt" ]; then # last, for it may take all that is left
  bench nanogpt-compiled-1k size=0.5b context=1k micro_batch_size=16 global_batch_size=32 arms=gpt,nanogpt nanogpt="$nanogpt"
fi
