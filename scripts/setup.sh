#!/bin/sh
# Make .venv from uv.lock; with pip, unlocked, where uv cannot be had. Needs Python 3.11 or newer.
set -eu
cd "$(dirname "$0")/.."
export UV_PYTHON_DOWNLOADS=never

python=python3
for candidate in python3.13 python3.12 python3.11; do
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; fi
done

make_venv() { # Debian's Python has venv in a package of its own
    "$python" -m venv "$1" >/dev/null 2>&1 && return
    rm -rf "$1"
    as_root=$([ "$(id -u)" = 0 ] || echo sudo)
    $as_root apt-get -o DPkg::Lock::Timeout=600 update -qq
    $as_root apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3-venv >/dev/null
    "$python" -m venv "$1"
}

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    make_venv .uv
    if .uv/bin/pip install --quiet --disable-pip-version-check uv; then uv=.uv/bin/uv; fi
fi
if [ -n "$uv" ]; then
    "$uv" sync --frozen --quiet --python "$python"
else
    echo "uv cannot be had: installing with pip, without the lock" >&2
    make_venv .venv
    .venv/bin/pip install --quiet --upgrade 'pip>=25.1'
    .venv/bin/pip install --quiet --editable . --group dev
fi
