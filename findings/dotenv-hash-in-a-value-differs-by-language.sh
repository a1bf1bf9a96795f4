#!/usr/bin/env bash
# .env files: SECRET=abc#def is "abc#def" for python-dotenv and "abc" for dotenv (npm) and Node itself.
#
# One would guess:  one .env shared by a Python service and a Node program gives both the same values, and a comment
#                   needs a blank before its #.
# What happens:     Node's readers end an unquoted value at the first #, python-dotenv only at a # after a blank. The same
#                   key or password works in one program and is refused in the other, cut and without a word. Quotes around
#                   the value make them agree.
# Seen with:        python-dotenv 1.2.4 (Python 3.11.7), dotenv 18.0.10 and Node 20.20.2's --env-file; 2026-11-27
# Output seen:      python-dotenv abc#def abc#def; dotenv (npm) abc abc#def; node --env-file abc abc#def

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  python-dotenv==1.2.4
npm install --silent --no-audit --no-fund --prefix "$work" dotenv@18.0.10
printf 'BARE_VALUE=abc#def\nQUOTED_VALUE="abc#def"\n' >"$work/shared.env"

by_python=$("$work/venv/bin/python" -c '
from dotenv import dotenv_values
values = dotenv_values("shared.env")
print(values["BARE_VALUE"], values["QUOTED_VALUE"])')
by_npm=$(node -e '
const values = require("dotenv").parse(require("fs").readFileSync("shared.env"));
console.log(values.BARE_VALUE, values.QUOTED_VALUE)')
by_node=$(node --env-file=shared.env -e 'console.log(process.env.BARE_VALUE, process.env.QUOTED_VALUE)')
echo "python-dotenv $by_python; dotenv (npm) $by_npm; node --env-file $by_node"
[[ $by_python == "abc#def abc#def" && $by_npm == "abc abc#def" && $by_node == "abc abc#def" ]] || {
  echo "CHANGED" >&2
  exit 1
}
echo "as described"
