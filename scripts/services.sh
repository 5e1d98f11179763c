#!/bin/sh
# Install what tests talk to. What is missing afterwards makes its tests skip, with the reason; CI fails then.
set -eu
nice "$(dirname "$0")/collector.sh" >/dev/null 2>&1 & # takes minutes the first time; its tests come last, and wait
cd "$(dirname "$0")/.."
if command -v go >/dev/null; then # the reference for PromQL; kept in ~/.cache/llmkg-otel
    .venv/bin/python tests/support/promtool3.py >/dev/null || echo "could not build promtool 3" >&2
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root=sudo || exit 0
fi
command -v apt-get >/dev/null || exit 0

missing=
command -v promtool >/dev/null || missing="$missing prometheus"
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v haproxy >/dev/null || missing="$missing haproxy"
command -v nginx >/dev/null || missing="$missing nginx-light"
command -v amtool >/dev/null || missing="$missing prometheus-alertmanager"
command -v kubectl >/dev/null || missing="$missing kubernetes-client"
[ -z "$missing" ] && exit 0
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get -o DPkg::Lock::Timeout=600 update -qq
# shellcheck disable=SC2086 - a list of names
$as_root apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $missing >/dev/null \
    || echo "could not install:$missing" >&2
