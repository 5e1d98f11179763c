#!/bin/sh
# Build the Collector of collector/builder.yaml, unless the cache has it, and print where it is. Needs Go.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/go/bin
manifest=collector/builder.yaml
version=$(sed -n 's/^  version: //p' "$manifest")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/llmkg-otel
binary=$cache/otelcol-$version-$(sha256sum "$manifest" | cut -c1-12)
[ -x "$binary" ] && echo "$binary" && exit 0
command -v go >/dev/null || { echo "Go is not installed: the Collector cannot be built" >&2; exit 3; }

mkdir -p "$cache"
exec 9>"$cache/otelcol.lock"
flock 9 # whoever else is building it
if [ ! -x "$binary" ]; then
    sources=$(mktemp -d)
    trap 'rm -rf "$sources"' EXIT
    sed "s#^dist:#&\n  output_path: $sources/build#" "$manifest" >"$sources/builder.yaml"
    export CGO_ENABLED=0
    go run "go.opentelemetry.io/collector/cmd/builder@v$version" --config "$sources/builder.yaml" \
        >"$cache/otelcol.log" 2>&1 || { tail -20 "$cache/otelcol.log" >&2; exit 1; }
    mv "$sources/build/llmkg-otelcol" "$binary"
fi
echo "$binary"
