#!/usr/bin/env bash
# GPT against nGPT from a fresh machine: an installation of two minutes, then about four on two CPU cores (3 min 54 s on two of
# an AMD EPYC); a second call, with nothing left to do, takes 2 s.
#
#   bash scripts/quickstart.sh            both arms at one rate, two budgets, three seeds (sweeps/quickstart.yaml)
#   bash scripts/quickstart.sh careless   then once more against a baseline that nobody tuned (sweeps/quickstart_careless.yaml)
#
# It installs into .venv, turns the documentation inside CPython into a corpus, trains 12 models of one million parameters, one
# process per core, and compares them: the speedup, perplexity beyond the training context, the learned scales, a sample of each.
# The same command continues after an interruption and does nothing twice. PYTHON=python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
  "" | careless) ;;
  -h | --help | help)
    sed -n '2,/^set /s/^# \{0,1\}//p' scripts/quickstart.sh
    exit
    ;;
  *)
    echo "error: $1: give nothing, or 'careless'; --help explains" >&2
    exit 2
    ;;
esac

[ -x .venv/bin/python ] || echo "--- installing into .venv: about two minutes, once"
. scripts/environment.sh requirements.txt

report=report/quickstart
longest=160 # steps of the largest budget in sweeps/quickstart*.yaml
cores=$(env -u OMP_NUM_THREADS nproc 2> /dev/null || getconf _NPROCESSORS_ONLN) # nproc would repeat OMP_NUM_THREADS

train() { # name of the sweep; a run is too small to gain from a second core
  echo "--- training: sweeps/$1.yaml, $cores runs at a time"
  python scripts/sweep.py "sweeps/$1.yaml" jobs="$cores"
}

keep() { # file, command...: keep the command's output in the file, unless it is there and newer than all results
  local file=$1
  shift
  if [ ! -s "$file" ] || [ -n "$(find runs/quickstart* -name status.json -newer "$file" -print -quit)" ]; then
    mkdir -p "$(dirname "$file")"
    "$@" > "$file.partial"
    mv "$file.partial" "$file"
  fi
}

[ -f data/docs/manifest.json ] || python prepare_owt.py data=docs
train quickstart

longest_runs=(runs/quickstart/*gpt-${longest}steps-*)
pair=(runs/quickstart/gpt-${longest}steps-*-seed1 runs/quickstart/ngpt-${longest}steps-*-seed1)

echo "--- looking at the trained models"
looks=()
OMP_NUM_THREADS=1 keep $report/extrapolation.txt python scripts/extrapolate.py "${longest_runs[@]}" multiples=1,2,4,8 \
  max_tokens=32768 out=$report/extrapolation &
looks+=($!)
OMP_NUM_THREADS=1 keep $report/inspection.txt python scripts/inspect_weights.py "${pair[@]}" out=$report/inspection &
looks+=($!)
OMP_NUM_THREADS=1 COLUMNS=100 keep $report/samples.txt python sample.py "${pair[@]}" prompt='Return the ' max_new_tokens=200 \
  temperature=0.7 &
looks+=($!)
for look in "${looks[@]}"; do wait "$look"; done
keep $report/comparison.txt python scripts/compare.py runs/quickstart/*gpt-* out=$report \
  beside=$report/extrapolation.txt,$report/extrapolation,$report/samples.txt,$report/inspection

echo "--- a sample of each"
cat $report/samples.txt
echo "--- the means of nGPT's learned scales, at the start and at the end"
sed -n '/^scale/p' $report/inspection.txt
echo "--- perplexity beyond the training context"
cat $report/extrapolation.txt
echo "--- the comparison"
cat $report/comparison.txt
echo "--- done: open $report/report.html"

if [ "${1:-}" = careless ]; then
  train quickstart_careless
  echo "--- the same nGPT against a baseline that nobody tuned: initial std 0.02, hardly a warmup"
  keep ${report}_careless/comparison.txt python scripts/compare.py runs/quickstart_careless/*gpt-* runs/quickstart/ngpt-* \
    out=${report}_careless
  cat ${report}_careless/comparison.txt
  echo "--- and against the tuned one"
  sed -n 1,3p $report/comparison.txt
  echo "--- done: open ${report}_careless/report.html"
fi
