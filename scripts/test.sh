#!/usr/bin/env bash
# Fresh machine -> virtual environment with the exact versions of requirements-ci.txt -> lint, types, the test suite.
# Arguments go to pytest: scripts/test.sh -m "not slow"; scripts/test.sh -k twins; scripts/test.sh -n 0 (one process, for pytest's -s or --pdb)
# Where these versions cannot be had: REQUIREMENTS="requirements.txt requirements-dev.txt" bash scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' scripts/test.sh
    exit
    ;;
esac
read -ra requirements <<< "${REQUIREMENTS:-requirements-ci.txt}"
. scripts/environment.sh "${requirements[@]}"

# One thread per process: the tests start several processes, and OpenMP threads that wait for each other crawl.
export OMP_NUM_THREADS=1
parallel=(-n 2 --dist loadfile --no-loadscope-reorder)  # two processes, each with whole files, the slow ones first
check() { # the cheap checks first: what they find need not wait for the tests
  echo "--- $*"
  "$@" || { echo "error: '$*' found something; the tests were not run" >&2; exit 1; }
}
check ruff check .
check ruff format --check .
check mypy
echo "--- python -m pytest -q ${parallel[*]} $*"
exec python -m pytest -q "${parallel[@]}" "$@"
