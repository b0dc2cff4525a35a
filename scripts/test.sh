#!/usr/bin/env bash
# Fresh machine -> virtual environment -> install -> the test suite. Arguments go to pytest: scripts/test.sh -k twins
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt requirements-dev.txt

# One thread per process: the tests start several processes, and OpenMP threads that wait for each other crawl.
export OMP_NUM_THREADS=1
ruff check .
ruff format --check .
exec python -m pytest -q "$@"
