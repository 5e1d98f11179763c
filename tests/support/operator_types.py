"""What the Prometheus Operator has against a manifest, by its own Go types, read strictly.

The program is built into a cache once (Go, 25 s of CPU time). The operator's patterns and enumerations are
comments in Go, so this sees fields that do not exist and values of another type, and no more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

VERSION = "v0.95.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llmkg-otel" / f"operator-{VERSION}"
MODULE = f"""\
module check
go 1.26
require (
    github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring {VERSION}
    sigs.k8s.io/yaml v1.6.0
)
"""
PROGRAM = """\
package main

import (
    "fmt"
    "io"
    "os"

    monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
    "sigs.k8s.io/yaml"
)

func main() {
    kinds := map[string]any{
        "ServiceMonitor": &monitoring.ServiceMonitor{},
        "PrometheusRule": &monitoring.PrometheusRule{},
    }
    manifest, _ := io.ReadAll(os.Stdin)
    if err := yaml.UnmarshalStrict(manifest, kinds[os.Args[1]]); err != nil {
        fmt.Println(err)
    }
}
"""


def objection(kind: str, manifest: str) -> str:
    """Return what is wrong with a manifest (YAML) of that kind, or nothing."""
    done = subprocess.run([_built(), kind], input=manifest, capture_output=True, text=True, check=True)
    return done.stdout


def _built() -> Path:
    if CACHE.exists():
        return CACHE
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as name:
        (Path(name) / "go.mod").write_text(MODULE)
        (Path(name) / "main.go").write_text(PROGRAM)
        done = subprocess.run(
            ["go", "build", "-mod=mod", "-o", "check", "."],
            cwd=name,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"the operator's types cannot be built here: {done.stderr[-300:]}")
        (Path(name) / "check").rename(CACHE)
    return CACHE
