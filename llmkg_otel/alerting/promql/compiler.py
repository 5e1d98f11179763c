"""From the parser's tree to a plan; whatever has no plan here is refused, naming the part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkg_otel.alerting.promql.aggregate import AGGREGATIONS, Grouping, aggregate, best, group_quantile
from llmkg_otel.alerting.promql.binary import (
    SET_OPERATORS,
    Cardinality,
    Matching,
    scalar_scalar,
    vector_scalar,
    vector_vector,
)
from llmkg_otel.alerting.promql.floats import ARITHMETIC, COMPARISON
from llmkg_otel.alerting.promql.functions import FUNCTIONS, negated
from llmkg_otel.alerting.promql.parse import shorten
from llmkg_otel.alerting.promql.plans import (
    Plan,
    ScalarPlan,
    Sides,
    TextPlan,
    Traits,
    VectorPlan,
    combined,
    remembered,
)
from llmkg_otel.alerting.promql.relabel import count_values
from llmkg_otel.alerting.promql.selectors import instant_selector, range_selector, timestamp_selector
from llmkg_otel.alerting.promql.subquery import subquery
from llmkg_otel.alerting.promql.values import Vector, unique
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmkg_otel.alerting.promql.evaluation import Moment

__all__ = ["compile_node"]

_MAX_DEPTH = 200
_CARDINALITY: dict[str, Cardinality] = {
    "VectorMatchCardinality.OneToOne": "one-to-one",
    "VectorMatchCardinality.ManyToOne": "many-to-one",
    "VectorMatchCardinality.OneToMany": "one-to-many",
}


def compile_node(node: Any, depth: int = 0) -> Plan:
    """Return the plan of a promql-parser node.

    Raises ConfigurationError "not supported" for a feature that has no exact implementation here (native
    histograms, and what Prometheus 3.x calls experimental), and for an expression of more than 200 levels.
    """
    if depth > _MAX_DEPTH:
        raise ConfigurationError(f"the expression has more than {_MAX_DEPTH} levels")
    kind = type(node).__name__
    compile_kind = _KINDS.get(kind)
    if compile_kind is None:
        raise _unsupported(kind, node)
    return compile_kind(node, depth + 1)


def _unsupported(feature: str, node: Any) -> ConfigurationError:
    return ConfigurationError(f"not supported: {feature}, in {shorten(str(node))}")


def _number(node: Any, _: int) -> Plan:
    value = float(node.val)
    return ScalarPlan(lambda _: value, Traits(value.hex()))


def _text(node: Any, _: int) -> Plan:
    return TextPlan(node.val, Traits(repr(node.val)))


def _paren(node: Any, depth: int) -> Plan:
    return compile_node(node.expr, depth)


def _unary(node: Any, depth: int) -> Plan:
    plan = compile_node(node.expr, depth)
    traits = combined(f"-({plan.traits.key})", [plan])
    if isinstance(plan, ScalarPlan):
        run = plan.run
        return ScalarPlan(lambda moment: -run(moment), traits)
    return negated(_vector(plan, node), traits)


def _call(node: Any, depth: int) -> Plan:
    name = str(node.func.name)
    build = FUNCTIONS.get(name)
    if build is None:
        experimental = "experimental " if node.func.experimental else ""
        native = " of native histograms" if name.startswith("histogram_") else ""
        raise _unsupported(f"{experimental}function {name}{native}", node)
    arguments = [compile_node(argument, depth) for argument in node.args]
    if name == "timestamp" and type(selector := _inside(node.args[0])).__name__ == "VectorSelector":
        arguments = [timestamp_selector(selector)]
        build = FUNCTIONS["timestamp of a selector"]
    traits = combined(f"{name}({', '.join(plan.traits.key for plan in arguments)})", arguments)
    plan = build(arguments, traits)
    return remembered(plan) if isinstance(plan, VectorPlan) else plan


def _inside(node: Any) -> Any:
    while type(node).__name__ == "ParenExpr":
        node = node.expr
    return node


def _vector(plan: Plan, node: Any) -> VectorPlan:
    if not isinstance(plan, VectorPlan):  # the parser checks types; this holds it to that
        raise _unsupported("an operand that is no instant vector", node)
    return plan


def _subquery(node: Any, depth: int) -> Plan:
    return subquery(node, _vector(compile_node(node.expr, depth), node))


def _aggregate(node: Any, depth: int) -> Plan:
    operator = str(node.op)
    plan = _vector(compile_node(node.expr, depth), node)
    labels = frozenset(node.modifier.labels if node.modifier is not None else ())
    grouping = Grouping(labels, without=node.modifier is not None and _is(node.modifier.type, "Without"))
    parameter = None if node.param is None else compile_node(node.param, depth)
    parts = [plan] if parameter is None else [parameter, plan]
    told = f"{operator} {grouping.without} {sorted(labels)}"
    traits = combined(f"{told} ({', '.join(part.traits.key for part in parts)})", parts)
    if operator == "count_values" and isinstance(parameter, TextPlan):
        return remembered(count_values(plan, grouping, parameter.text, traits))
    return remembered(VectorPlan(_group(operator, grouping, plan, parameter, node), traits))


def _group(
    operator: str, grouping: Grouping, plan: VectorPlan, parameter: Plan | None, node: Any
) -> Callable[[Moment], Vector]:
    source = plan.run
    if operator in AGGREGATIONS and parameter is None:
        function = AGGREGATIONS[operator]
        return lambda moment: aggregate(function, grouping, source(moment))
    if operator not in ("topk", "bottomk", "quantile"):
        raise _unsupported(f"experimental aggregation {operator}", node)
    if not isinstance(parameter, ScalarPlan):
        raise _unsupported("a parameter that is no number", node)
    number, largest = parameter.run, operator == "topk"
    if operator == "quantile":
        return lambda moment: aggregate(group_quantile(number(moment)), grouping, source(moment))
    return lambda moment: best(number(moment), grouping, source(moment), largest=largest)


def _is(enumerated: Any, name: str) -> bool:
    return str(enumerated).rpartition(".")[2] == name  # the parser's enums have no equality


def _binary(node: Any, depth: int) -> Plan:
    operator = str(node.op)
    if operator not in ARITHMETIC and operator not in COMPARISON and operator not in SET_OPERATORS:
        raise _unsupported(f"operator {operator}", node)
    left, right = compile_node(node.lhs, depth), compile_node(node.rhs, depth)
    as_bool = node.modifier is not None and node.modifier.return_bool
    matching = _matching(node)
    told = f"{operator} {as_bool} {matching.told}"
    traits = combined(f"({left.traits.key}) {told} ({right.traits.key})", [left, right])
    if isinstance(left, ScalarPlan) and isinstance(right, ScalarPlan):
        number, first, second = scalar_scalar(operator), left.run, right.run
        return ScalarPlan(lambda moment: number(first(moment), second(moment)), traits)
    if isinstance(left, VectorPlan) and isinstance(right, VectorPlan):
        run = _vectors(operator, left, right, matching, as_bool=as_bool)
        return VectorPlan(run, traits, sides=_sides(operator, left, right, matching))
    if isinstance(left, VectorPlan) and isinstance(right, ScalarPlan):
        return VectorPlan(_mixed(operator, left, right, swapped=False, as_bool=as_bool), traits)
    if isinstance(left, ScalarPlan) and isinstance(right, VectorPlan):
        return VectorPlan(_mixed(operator, right, left, swapped=True, as_bool=as_bool), traits)
    raise _unsupported("an operand that is a range or a text", node)


def _mixed(
    operator: str, plan: VectorPlan, scalar: ScalarPlan, *, swapped: bool, as_bool: bool
) -> Callable[[Moment], Vector]:
    apply = vector_scalar(operator, swapped=swapped, as_bool=as_bool)
    vector, number = plan.run, scalar.run
    return lambda moment: apply(vector(moment), number(moment))


def _vectors(
    operator: str, left: VectorPlan, right: VectorPlan, matching: Matching, *, as_bool: bool
) -> Callable[[Moment], Vector]:
    first, second = left.run, right.run
    if operator in SET_OPERATORS:
        combine = SET_OPERATORS[operator]
        return lambda moment: unique(combine(first(moment), second(moment), matching))
    apply = vector_vector(operator, matching, as_bool=as_bool)
    return lambda moment: apply(first(moment), second(moment))


def _sides(operator: str, left: VectorPlan, right: VectorPlan, matching: Matching) -> Sides | None:
    if operator not in ("and", "or"):
        return None
    combine = SET_OPERATORS[operator]
    on_all = not matching.on and not matching.labels
    return Sides(operator, left, right, on_all, lambda first, second: combine(first, second, matching))


def _matching(node: Any) -> Matching:
    modifier = node.modifier
    if modifier is None:
        return Matching()
    if modifier.fill_values.lhs is not None or modifier.fill_values.rhs is not None:
        raise _unsupported("fill", node)
    rule = modifier.matching
    return Matching(
        rule.labels if rule is not None else (),
        on=rule is not None and _is(rule.type, "Include"),
        cardinality=_CARDINALITY.get(str(modifier.card), "one-to-one"),
        include=tuple(modifier.group_labels or ()),
    )


_KINDS: dict[str, Callable[[Any, int], Plan]] = {
    "NumberLiteral": _number,
    "StringLiteral": _text,
    "ParenExpr": _paren,
    "UnaryExpr": _unary,
    "Call": _call,
    "AggregateExpr": _aggregate,
    "BinaryExpr": _binary,
    "SubqueryExpr": _subquery,
    "VectorSelector": lambda node, _: remembered(instant_selector(node)),
    "MatrixSelector": lambda node, _: range_selector(node),
}
