"""The table of docs/engines.md: `python tests/support/engines_table.py` prints it."""

from __future__ import annotations

from llmkg_otel.engine.profiles import PROFILES, Method, Profile, protected_name, target

HEADER = "| method | operation | tried again | time limit | rows |\n|---|---|---|---|---|"


def rows() -> list[str]:
    """Return a row for each method that is protected."""
    return [
        _row(profile, name, how)
        for profile in PROFILES
        if profile.protect
        for name, how in profile.methods.items()
    ]


def _row(profile: Profile, name: str, how: Method) -> str:
    _, class_name = target(profile.classes[0])
    again = "yes" if how.repeatable else "no"
    limit = f"{how.timeout_seconds:g} s" if how.timeout_seconds else "3600 s"
    counted = "the result's" if how.rows == "self" else f"its `{how.rows}`" if how.rows else ""
    counted = "as iterated" if how.kind == "lazy" else counted
    operation = protected_name(profile, name, how)
    return f"| `{class_name}.{name}` | `{operation}` | {again} | {limit} | {counted or '-'} |"


if __name__ == "__main__":
    print(HEADER, *rows(), sep="\n")
