#!/usr/bin/env bash
# Fresh machine -> virtual environment -> install -> the documentation inside CPython as a corpus -> both arms at several
# budgets -> the speedup report -> a sample from each. Run it again after an interruption: what is done is not done again.
# More seeds: SEEDS="1 2 3" bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt

seeds=${SEEDS:-1337}
gpt_budgets="200 400 800"     # optimizer steps; each is a run of its own with its own cosine to zero
ngpt_budgets="100 200 400"    # nGPT is expected to need fewer
runs=()

train() { # arm steps seed
  local name=quickstart-$1-$2steps-seed$3
  runs+=("runs/$name")
  echo "--- $1, $2 steps, seed $3"
  python train.py experiment=quickstart model="$1" max_steps="$2" seed="$3" run_name="$name"
}

[ -f data/docs/manifest.json ] || python prepare_owt.py data=docs
for seed in $seeds; do
  for steps in $gpt_budgets; do train gpt "$steps" "$seed"; done
  for steps in $ngpt_budgets; do train ngpt "$steps" "$seed"; done
done

echo "--- the comparison"
python scripts/compare.py "${runs[@]}" --out report/quickstart
for run in "runs/quickstart-gpt-${gpt_budgets##* }steps-seed${seeds%% *}" "runs/quickstart-ngpt-${ngpt_budgets##* }steps-seed${seeds%% *}"; do
  echo "--- a sample from $run"
  python sample.py run="$run" prompt="'Return the '" max_new_tokens=200 temperature=0.7
done
echo "--- done: open report/quickstart/report.html"
