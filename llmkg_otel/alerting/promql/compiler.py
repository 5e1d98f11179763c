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
from llmkg_otel.alerting.promql.functions import FUNCTIONS, each
from llmkg_otel.alerting.promql.parse import shorten
from llmkg_otel.alerting.promql.plans import Plan, RangePlan, ScalarPlan, VectorPlan
from llmkg_otel.alerting.promql.selectors import instant_selector, range_selector
from llmkg_otel.alerting.promql.values import Moment, Vector, unique
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compile_node"]

_MAX_DEPTH = 200
_CARDINALITY: dict[str, Cardinality] = {
    "VectorMatchCardinality.OneToOne": "one-to-one",
    "VectorMatchCardinality.ManyToOne": "many-to-one",
    "VectorMatchCardinality.OneToMany": "one-to-many",
}


def compile_node(node: Any, depth: int = 0) -> Plan:
    """Return the plan of a promql-parser node.

    Raises ConfigurationError "not supported yet" for a feature that has no exact implementation here,
    and for an expression of more than 200 levels.
    """
    if depth > _MAX_DEPTH:
        raise ConfigurationError(f"the expression has more than {_MAX_DEPTH} levels")
    kind = type(node).__name__
    compile_kind = _KINDS.get(kind)
    if compile_kind is None:
        raise _unsupported(_FEATURES.get(kind, kind), node)
    return compile_kind(node, depth + 1)


def _unsupported(feature: str, node: Any) -> ConfigurationError:
    return ConfigurationError(f"not supported yet: {feature}, in {shorten(str(node))}")


def _number(node: Any, _: int) -> Plan:
    value = float(node.val)
    return ScalarPlan(lambda _: value)


def _paren(node: Any, depth: int) -> Plan:
    return compile_node(node.expr, depth)


def _unary(node: Any, depth: int) -> Plan:
    plan = compile_node(node.expr, depth)
    if isinstance(plan, ScalarPlan):
        run = plan.run
        return ScalarPlan(lambda moment: -run(moment), plan.reach)
    return each(_vector(plan, node), lambda value: -value)


def _call(node: Any, depth: int) -> Plan:
    name = str(node.func.name)
    build = FUNCTIONS.get(name)
    if build is None:
        raise _unsupported(f"function {name}", node)
    return build([compile_node(argument, depth) for argument in node.args])


def _vector(plan: Plan, node: Any) -> VectorPlan:
    if not isinstance(plan, VectorPlan):  # the parser checks types; this holds it to that
        raise _unsupported("an operand that is no instant vector", node)
    return plan


def _aggregate(node: Any, depth: int) -> Plan:
    operator = str(node.op)
    grouping = _grouping(node.modifier)
    plan = _vector(compile_node(node.expr, depth), node)
    source = plan.run
    if operator in AGGREGATIONS:
        function = AGGREGATIONS[operator]
        return VectorPlan(lambda moment: aggregate(function, grouping, source(moment)), plan.reach)
    if operator not in ("topk", "bottomk", "quantile"):
        raise _unsupported(f"aggregation {operator}", node)
    parameter = compile_node(node.param, depth)
    if not isinstance(parameter, ScalarPlan):
        raise _unsupported("a parameter that is no number", node)
    number, largest = parameter.run, operator == "topk"

    def run(moment: Moment) -> Vector:
        if operator == "quantile":
            return aggregate(group_quantile(number(moment)), grouping, source(moment))
        return best(number(moment), grouping, source(moment), largest=largest)

    return VectorPlan(run, max(plan.reach, parameter.reach))


def _grouping(modifier: Any) -> Grouping:
    if modifier is None:
        return Grouping(without=False, labels=frozenset())
    return Grouping(without=str(modifier.type).endswith("Without"), labels=frozenset(modifier.labels))


def _binary(node: Any, depth: int) -> Plan:
    operator = str(node.op)
    if operator not in ARITHMETIC and operator not in COMPARISON and operator not in SET_OPERATORS:
        raise _unsupported(f"operator {operator}", node)
    left, right = compile_node(node.lhs, depth), compile_node(node.rhs, depth)
    if isinstance(left, RangePlan) or isinstance(right, RangePlan):
        raise _unsupported("an operand that is a range", node)
    as_bool = node.modifier is not None and node.modifier.return_bool
    reach = max(left.reach, right.reach)
    if isinstance(left, ScalarPlan) and isinstance(right, ScalarPlan):
        number, first, second = scalar_scalar(operator), left.run, right.run
        return ScalarPlan(lambda moment: number(first(moment), second(moment)), reach)
    if isinstance(left, VectorPlan) and isinstance(right, VectorPlan):
        return VectorPlan(_vectors(node, operator, left, right, as_bool=as_bool), reach)
    return VectorPlan(_mixed(operator, left, right, as_bool=as_bool), reach)


def _mixed(
    operator: str, left: ScalarPlan | VectorPlan, right: ScalarPlan | VectorPlan, *, as_bool: bool
) -> Callable[[Moment], Vector]:
    apply = vector_scalar(operator, swapped=isinstance(left, ScalarPlan), as_bool=as_bool)
    if isinstance(left, VectorPlan) and isinstance(right, ScalarPlan):
        vector, number = left.run, right.run
    elif isinstance(right, VectorPlan) and isinstance(left, ScalarPlan):
        vector, number = right.run, left.run
    return lambda moment: apply(vector(moment), number(moment))


def _vectors(
    node: Any, operator: str, left: VectorPlan, right: VectorPlan, *, as_bool: bool
) -> Callable[[Moment], Vector]:
    matching = _matching(node)
    first, second = left.run, right.run
    if operator in SET_OPERATORS:
        combine = SET_OPERATORS[operator]
        return lambda moment: unique(combine(first(moment), second(moment), matching))
    apply = vector_vector(operator, matching, as_bool=as_bool)
    return lambda moment: apply(first(moment), second(moment))


def _matching(node: Any) -> Matching:
    modifier = node.modifier
    if modifier is None:
        return Matching(on=False, labels=frozenset())
    if modifier.fill_values.lhs is not None or modifier.fill_values.rhs is not None:
        raise _unsupported("fill", node)
    rule = modifier.matching
    on = rule is not None and str(rule.type).endswith("Include")
    return Matching(
        on=on,
        labels=frozenset(rule.labels if rule is not None else ()),
        cardinality=_CARDINALITY.get(str(modifier.card), "one-to-one"),
        include=tuple(modifier.group_labels or ()),
    )


_KINDS: dict[str, Callable[[Any, int], Plan]] = {
    "NumberLiteral": _number,
    "ParenExpr": _paren,
    "UnaryExpr": _unary,
    "Call": _call,
    "AggregateExpr": _aggregate,
    "BinaryExpr": _binary,
    "VectorSelector": lambda node, _: instant_selector(node),
    "MatrixSelector": lambda node, _: range_selector(node),
}
_FEATURES = {"SubqueryExpr": "subqueries", "StringLiteral": "strings as values"}
