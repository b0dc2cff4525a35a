# Sourced by the other scripts: makes .venv with the given requirement files installed, once, and activates it.
# usage: cd to the repository; . scripts/environment.sh requirements.txt [requirements-dev.txt]
# PYTHON=python3.12 chooses the interpreter. An active virtual environment or conda is left alone: .venv is used.

_python=${PYTHON:-python3}
"$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $_python is older than 3.11; set PYTHON=..." >&2; exit 2; }
[ -x .venv/bin/python ] || "$_python" -m venv .venv
_wanted=$(cat "$@" | cksum)
_stamp=.venv/installed-$(echo "$@" | tr -c '[:alnum:]\n' '_')
if [ "$(cat "$_stamp" 2>/dev/null)" != "$_wanted" ]; then
  echo "installing $* into .venv"
  _arguments=()
  for _file in "$@"; do _arguments+=(-r "$_file"); done
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${_arguments[@]}"
  echo "$_wanted" > "$_stamp"  # only now: an installation cut short is done again
fi
. .venv/bin/activate
