#!/bin/sh
# Make .venv-engines from uv.lock: LightRAG, Graphiti and what they need fit together, but not beside the
# servers of .venv. Without uv their tests skip; CI fails then.
set -eu
cd "$(dirname "$0")/.."
export UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=.venv-engines

uv=$(command -v uv || echo .uv/bin/uv)
mkdir -p .venv-engines
if [ ! -x "$(command -v "$uv")" ]; then
    echo "uv cannot be had: the tests of real engines will skip" >&2
    exit 0
fi
"$uv" sync --frozen --quiet --no-default-groups --group engines --python "$(readlink -f .venv/bin/python)"
