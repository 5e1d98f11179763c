"""Do the profiles fit the oldest and the newest supported version of each engine?

`python tests/engines_versions.py` makes a throwaway virtual environment for each version (needs uv and a
package index; about a minute) and looks there; `--here lightrag rdflib` looks at what is installed.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from llmkg_otel.engine.profiles import PROFILES, Method, target

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
SUPPORTED = {
    "lightrag": ("lightrag-hku", "1.4.9", "1.5.7"),
    "graphiti": ("graphiti-core", "0.19.0", "0.31.2"),
    "rdflib": ("rdflib", "6.3.2", "7.6.0"),
    "neo4j": ("neo4j", "5.8.0", "6.4.1"),
}
"""Engine: its distribution, the oldest and the newest version."""


def problems(engine: str) -> Iterator[str]:
    """Yield what a profile names and the installed version has not, or has of another kind."""
    for profile in (each for each in PROFILES if each.name == engine):
        for position, (module, name) in enumerate(map(target, profile.classes)):
            engine_class = getattr(importlib.import_module(module), name, None)
            if engine_class is None:
                yield f"{module}:{name} is not there"
                continue
            for method, how in profile.methods.items():
                function = getattr(engine_class, method, None)
                if function is not None:
                    yield from (f"{name}.{method}: {what}" for what in _misfits(function, how))
                elif position == 0:
                    yield f"{name}.{method} is not there"


def _misfits(function: object, how: Method) -> Iterator[str]:
    kind = "async" if inspect.iscoroutinefunction(function) else "sync"
    if inspect.isgeneratorfunction(function) or how.iterates is not None:
        kind = "lazy"
    if how.kind not in (kind, "auto"):
        yield f"is {kind}, not {how.kind}"
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    if how.text is not None and how.text not in parameters:
        yield f"has no parameter {how.text}"


def _in_throwaway_venv(engine: str, distribution: str, wanted: str) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        python = f"{directory}/bin/python"
        install = ["uv", "pip", "install", "--quiet", "--python", python, "--editable", str(ROOT)]
        extras = ["httpx"] if engine in ("graphiti", "lightrag") else []  # imported, and not asked for
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, directory], check=True)
        subprocess.run([*install, f"{distribution}=={wanted}", *extras], check=True)
        done = subprocess.run(
            [python, __file__, "--here", engine], check=False, env={"PYTHONPATH": str(ROOT)}
        )
        return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", nargs="+", metavar="ENGINE")
    options = parser.parse_args()
    if options.here:
        found = {engine: list(problems(engine)) for engine in options.here}
        for engine, misfits in found.items():
            print(f"{engine} {version(SUPPORTED[engine][0])}: {'; '.join(misfits) or 'fits'}")
        return int(any(found.values()))
    fits = [
        _in_throwaway_venv(engine, distribution, each)
        for engine, (distribution, *versions) in SUPPORTED.items()
        for each in versions
    ]
    return 0 if all(fits) else 1


if __name__ == "__main__":
    sys.exit(main())
