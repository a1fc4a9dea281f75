"""The filter language of cohorts: a small part of Spark SQL, parsed and type-checked before any work.

Columns, literals, comparisons, AND/OR/NOT, IN, BETWEEN, IS NULL, + - *, abs and coalesce: nothing that can fail on a row.
Everything else (subqueries, casts, division, other functions) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, TokenError

from twinlib.errors import ConfigError

NUMBER, TEXT, TRUTH = "number", "text", "truth value"
_ANY = "anything"  # NULL

_COMPARISONS = (exp.EQ, exp.NEQ, exp.NullSafeEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between)
_LOGIC = (exp.And, exp.Or, exp.Not)
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Neg, exp.Abs)


def compiled(where: str, columns: Mapping[str, str], place: str) -> str:
    """The filter as checked Spark SQL text; `columns` maps each known column to its kind (NUMBER or TEXT).

    Raises ConfigError naming `place`, the position and what was expected.
    """
    tree = _parsed(where, place)
    kind = _kind(tree, columns, place)
    if kind not in (TRUTH, _ANY):
        raise ConfigError(f"{place}: the filter is a {kind}, expected a condition that is true or false")
    # integer literals could overflow in integer arithmetic: everything numeric is computed in double
    tree = tree.transform(lambda n: exp.cast(n, "double") if isinstance(n, exp.Literal) and not n.is_string else n)
    return tree.sql(dialect="spark", comments=False)


def _parsed(where: str, place: str) -> exp.Expression:
    try:
        trees = sqlglot.parse(where, dialect="spark")
    except ParseError as e:
        first = e.errors[0]
        word = first["highlight"]
        at = f"line {first['line']}, column {max(first['col'] - len(word) + 1, 1)}"  # sqlglot gives the end of the word
        raise ConfigError(f"{place}: syntax error at {at} of the filter{f', near {word!r}' if word else ''}") from None
    except TokenError:
        quotes = [i for i, c in enumerate(where) if c in "'\"`"]
        at = f" (the last quote stands at character {quotes[-1] + 1})" if quotes else ""
        raise ConfigError(f"{place}: syntax error: a quoted text or a character in the filter is not complete{at}") from None
    if len(trees) != 1 or trees[0] is None:
        raise ConfigError(
            f"{place}: expected one condition, found {'none' if trees[0] is None else len(trees)}; use `true` for everyone"
        )
    return trees[0]


def _position(node: exp.Expression) -> str:
    """ " at line l, column c" of the first part of `node` whose place is known."""
    meta = next((n.meta for n in node.walk() if "line" in n.meta), None)
    return f" at line {meta['line']}, column {meta['col'] - (meta['end'] - meta['start'])}" if meta else ""


def _kind(node: exp.Expression, columns: Mapping[str, str], place: str) -> str:
    """Kind of the value of `node`. Raises ConfigError where it, or any part of it, is not allowed."""

    def parts() -> list[str]:
        return [_kind(child, columns, place) for child in node.iter_expressions()]

    def expect(*wanted: str) -> None:
        for kind in parts():
            if kind not in (*wanted, _ANY):
                raise ConfigError(
                    f"{place}: {node.sql(dialect='spark')}{_position(node)}: expected a {' or '.join(wanted)}, found a {kind}"
                )

    def alike() -> str:
        kinds = sorted(set(parts()) - {_ANY})
        if len(kinds) > 1:
            raise ConfigError(f"{place}: {node.sql(dialect='spark')}{_position(node)}: compares a {' with a '.join(kinds)}")
        return kinds[0] if kinds else _ANY

    match node:
        case exp.Column():
            if node.table or node.name.lower() not in columns:
                known = ", ".join(sorted(columns))
                raise ConfigError(f"{place}: unknown column {node.sql(dialect='spark')}{_position(node)}; known are {known}")
            return columns[node.name.lower()]
        case exp.Literal():
            return TEXT if node.is_string else NUMBER
        case exp.Boolean():
            return TRUTH
        case exp.Null():
            return _ANY
        case exp.Paren() if isinstance(node.this, exp.Expression):
            return _kind(node.this, columns, place)
        case exp.Is() if isinstance(node.expression, (exp.Null, exp.Boolean)):
            parts()
            if isinstance(node.expression, exp.Boolean):
                expect(TRUTH)
            return TRUTH
        case exp.Coalesce():
            return alike()
    if isinstance(node, _COMPARISONS) or (isinstance(node, exp.In) and node.expressions):
        alike()
        return TRUTH
    for allowed, kind in ((_LOGIC, TRUTH), (_ARITHMETIC, NUMBER)):
        if isinstance(node, allowed):
            expect(kind)
            return kind
    raise ConfigError(f"{place}: {node.sql(dialect='spark')}{_position(node)}: {_name(node)} is not allowed in a cohort's filter")


def _name(node: exp.Expression) -> str:
    if isinstance(node, (exp.Query, exp.Subquery, exp.Exists)) or node.args.get("query"):
        return "a subquery"
    if isinstance(node, exp.Anonymous):
        return f"the function {node.name.lower()}"
    return f"{'the function ' if isinstance(node, exp.Func) else ''}{node.key}"
