#!/bin/sh
# Make .venv-engines from uv.lock: LightRAG, Graphiti and what they need fit together, but not beside the
# servers of .venv. And a neo4j in .venv-engines/neo4j, from Maven Central. Without uv, or without Java and
# Maven, their tests skip; CI fails then.
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

if command -v java >/dev/null && command -v mvn >/dev/null; then
    mvn --quiet --batch-mode --file tests/support/neo4j/pom.xml dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$PWD/.venv-engines/neo4j" >/dev/null \
        || echo "neo4j cannot be had: its tests will skip" >&2
else
    echo "no Java with Maven: the tests of neo4j will skip" >&2
fi
