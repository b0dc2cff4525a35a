#!/usr/bin/env bash
# Train tiny runs for MINUTES under random kills, signals and damaged files, and compare each, bit for bit, with an
# undisturbed run. The faults are chosen by SEED. Exit code 0: no difference and nothing unexpected.
# usage: bash scripts/soak.sh MINUTES [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' scripts/soak.sh
    exit
    ;;
esac
. scripts/environment.sh requirements.txt
exec python scripts/soak.py "$@"
