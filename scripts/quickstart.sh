#!/usr/bin/env bash
# Fresh machine -> virtual environment -> install -> the documentation inside CPython as a corpus -> both arms at several
# budgets -> the speedup report -> a sample from each. Run it again after an interruption: what is done is not done again.
# More seeds: SEEDS="1 2 3" bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt

seeds=${SEEDS:-1337}
budgets="100 200 400 800" # optimizer steps of 2048 tokens; each is a run of its own, annealed to zero
runs=()

# torch.compile makes both arms faster, nGPT more; on a CPU it needs a C++ compiler and Python's headers.
if python -c 'import torch; torch.compile(lambda x: x.sin() + 1)(torch.ones(4))' >/dev/null 2>&1; then compile=true; else compile=false; fi

train() { # arm steps seed
  local name="quickstart-$1-$2steps-seed$3" options=()
  runs+=("runs/$name")
  [ "$1" = ngpt ] || options=(warmup_steps=$(($2 / 5))) # the baseline needs a warmup, nGPT's recipe has none
  echo "--- $1, $2 steps, seed $3"
  python train.py experiment=quickstart model="$1" max_steps="$2" seed="$3" run_name="$name" compile=$compile "${options[@]}"
}

[ -f data/docs/manifest.json ] || python prepare_owt.py data=docs
for seed in $seeds; do
  for steps in $budgets; do
    train gpt "$steps" "$seed"
    train ngpt "$steps" "$seed"
  done
done

echo "--- the comparison"
python scripts/compare.py "${runs[@]}" --out report/quickstart
for arm in gpt ngpt; do
  echo "--- a sample from $arm"
  python sample.py "runs/quickstart-$arm-${budgets##* }steps-seed${seeds##* }" prompt='Return the ' max_new_tokens=200 temperature=0.7
done
echo "--- done: open report/quickstart/report.html"
