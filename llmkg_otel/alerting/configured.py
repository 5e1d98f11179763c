"""Which rule files a configuration asks for: ours, and the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkg_otel.alerting.rules import load_default_rules, load_rules

if TYPE_CHECKING:
    from llmkg_otel.alerting.rules import RuleFile
    from llmkg_otel.config import ProductionConfig

__all__ = ["configured_rules", "own_rules"]


def own_rules(config: ProductionConfig) -> list[RuleFile]:
    """Return the rules that this layer brings itself, which `rules export` writes for Prometheus."""
    retention = config.monitoring.metric_retention_seconds
    return [load_default_rules(retention_seconds=retention)] if config.alerting.default_rules else []


def configured_rules(config: ProductionConfig) -> list[RuleFile]:
    """Return all rules that are evaluated in process; raise ConfigurationError if a rule file is wrong."""
    retention = config.monitoring.metric_retention_seconds
    named = [load_rules(path, retention_seconds=retention) for path in config.alerting.rule_files]
    return [*own_rules(config), *named]
