"""Arithmetic written as text in the question and story files, evaluated over given names and functions and nothing else. Not Python's eval."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

BINARY: dict[type, Callable] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
COMPARE: dict[type, Callable] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
PLAIN: dict[str, Callable] = {"abs": abs, "max": max, "min": min, "round": round, "sum": sum, "len": len, "int": int}


def evaluate(text: str, names: Mapping[str, Any], functions: Mapping[str, Callable]) -> Any:
    """The value of an expression: numbers, strings, lists, + - * / // % **, comparisons, and, or, not, x if c else y, and calls of `functions`
    by name. Raises ValueError that quotes the expression on anything else.
    """
    try:
        return _value(ast.parse(text, mode="eval").body, names, {**PLAIN, **functions})
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"cannot evaluate {text!r}: {type(error).__name__} {error}") from error


def _value(node: ast.expr, names: Mapping[str, Any], functions: Mapping[str, Callable]) -> Any:
    def of(part: ast.expr) -> Any:
        return _value(part, names, functions)

    match node:
        case ast.Constant(value=value) if isinstance(value, bool | int | float | str):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [of(part) for part in parts]
        case ast.BinOp(left=left, op=op, right=right):
            return BINARY[type(op)](of(left), of(right))
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -of(part)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not of(part)
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(of(part) for part in parts)
        case ast.BoolOp(op=ast.Or(), values=parts):
            return any(of(part) for part in parts)
        case ast.IfExp(test=test, body=yes, orelse=no):
            return of(yes) if of(test) else of(no)
        case ast.Compare(left=left, ops=ops, comparators=parts):
            values = [of(left), *map(of, parts)]
            return all(COMPARE[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return functions[name](*map(of, args), **{k.arg: of(k.value) for k in keywords if k.arg})
    raise ValueError(f"{type(node).__name__} has no place in an expression")
