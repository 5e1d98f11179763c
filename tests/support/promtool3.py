"""promtool 3.5, which Debian does not have: found in a cache, or built there from the Go module's source.

`python tests/support/promtool3.py` builds it unless it is there (Go 1.23 or newer, 2 GB, once): 3 minutes on
two cores with nothing cached. `go install` cannot: the module has replace directives.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = "github.com/prometheus/prometheus@v0.305.3"  # Prometheus 3.5.3
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llmkg-otel" / "promtool-3.5.3"


def find() -> str | None:
    """Return where promtool 3 is; None when it was never built."""
    given = os.environ.get("PROMTOOL3", str(CACHE))
    return given if os.access(given, os.X_OK) else None


def build() -> Path:
    """Build promtool into the cache."""
    done = subprocess.run(
        ["go", "mod", "download", "-json", MODULE], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        shutil.copytree(json.loads(done.stdout)["Dir"], source)
        for path in (source, *source.rglob("*")):  # the module cache is read-only
            path.chmod(0o755 if path.is_dir() else 0o644)
        (source / "plugins" / "plugins.go").unlink()  # clients of every cloud, a third of it
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["go", "build", "-o", str(CACHE), "./cmd/promtool"], cwd=source, check=True)
    return CACHE


if __name__ == "__main__":
    sys.stdout.write(f"{find() or build()}\n")
