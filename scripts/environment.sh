# Sourced by the other scripts: makes .venv with the given requirement files installed, once, and activates it.
# usage: cd to the repository; . scripts/environment.sh requirements.txt [requirements-dev.txt]
# PYTHON=python3.12 chooses the interpreter. An active virtual environment or conda is left alone: .venv is used.
# uv installs where it is there, several times faster, and pip otherwise.

_python=${PYTHON:-python3}
"$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $_python is older than 3.11; set PYTHON=..." >&2; exit 2; }
[ -x .venv/bin/python ] || "$_python" -m venv .venv
_wanted=$(cat "$@" | cksum)
_stamp=.venv/installed-$(echo "$@" | tr -c '[:alnum:]\n' '_')
if [ "$(cat "$_stamp" 2>/dev/null)" != "$_wanted" ]; then
  echo "installing $* into .venv"
  _arguments=()
  for _file in "$@"; do _arguments+=(-r "$_file"); done
  if command -v uv > /dev/null; then
    # uv does not read pip's configuration; of several indexes it would take the first that knows a name, and pip the newest version
    mapfile -t _settings < <(.venv/bin/python -m pip config list | .venv/bin/python -c '
import ast, sys
for line in sys.stdin:
    key, _, value = line.strip().partition("=")
    option = key.rpartition(".")[2]
    if option in ("index-url", "extra-index-url", "find-links", "constraint"):
        for word in ast.literal_eval(value).split():
            print(f"--{option}={word}")')
    uv pip install --quiet --python .venv/bin/python --index-strategy unsafe-best-match ${_settings[@]+"${_settings[@]}"} "${_arguments[@]}"
  else
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${_arguments[@]}"
  fi
  echo "$_wanted" > "$_stamp"  # only now: an installation cut short is done again
fi
. .venv/bin/activate
