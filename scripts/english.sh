#!/usr/bin/env bash
# 57 MB of English -> data/english, bytes as tokens: `train.py data=english` reads it. A minute; 34 MB are downloaded.
# The text is the documentation inside two packages of the Python index, botocore and google-api-python-client (both
# Apache-2.0), in these versions, so that everybody's bins are the same. They are downloaded and read, not installed.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' scripts/english.sh
    exit
    ;;
  ?*)
    echo "error: $1: it takes no arguments; --help explains" >&2
    exit 2
    ;;
esac
. scripts/environment.sh requirements.txt

packages="botocore==1.44.8 google-api-python-client==2.202.0"
text=data/packages/english.jsonl

if [ ! -f $text ]; then
  # shellcheck disable=SC2086
  python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest data/packages/wheels $packages
  python -m corpus.api_documentation data/packages/wheels/*.whl > $text.partial
  mv $text.partial $text
fi
python prepare_owt.py data=english
