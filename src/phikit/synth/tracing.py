"""Follows a small Python function by hand, and writes down what a person would.

A tiny interpreter over Python's syntax tree: assignments, `for`, `while`, `if`, `return`, integer,
string and list expressions. It exists so that a worked trace can be written without running
generated code in this process; what it finds is checked by the sandbox, which runs the function.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from phikit.errors import PhikitError

_OPERATORS: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", lambda a, b: a + b),
    ast.Sub: ("-", lambda a, b: a - b),
    ast.Mult: ("*", lambda a, b: a * b),
    ast.FloorDiv: ("//", lambda a, b: a // b),
    ast.Mod: ("%", lambda a, b: a % b),
}
_COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Lt: ("<", lambda a, b: a < b),
    ast.Gt: (">", lambda a, b: a > b),
    ast.LtE: ("<=", lambda a, b: a <= b),
    ast.GtE: (">=", lambda a, b: a >= b),
    ast.Eq: ("==", lambda a, b: a == b),
    ast.NotEq: ("!=", lambda a, b: a != b),
}


class _Returned(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


def trace(source: str, arguments: Sequence[Any]) -> tuple[Any, list[list[str]]]:
    """(the value returned, the notes taken) of one function called with `arguments`.

    The notes of one turn of a loop are one list, which begins with the loop's variable; every
    other note is a list of its own.

    Raises:
        PhikitError: the function uses what this interpreter does not know, or returns nothing.
    """
    function = ast.parse(source).body[0]
    if not isinstance(function, ast.FunctionDef):
        raise PhikitError("only a function can be traced")
    tracer = _Tracer()
    tracer.names = dict(zip((a.arg for a in function.args.args), arguments, strict=True))
    try:
        tracer.block(function.body)
    except _Returned as returned:
        tracer.end_line()
        return returned.value, tracer.turns
    raise PhikitError("the function returns nothing")


class _Tracer:
    """Runs statements; notes of one loop turn stand on one line."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.turns: list[list[str]] = []
        self._notes: list[str] = []
        self._in_loop = False

    def note(self, text: str) -> None:
        self._notes.append(text)
        if not self._in_loop:
            self.end_line()

    def end_line(self) -> None:
        if self._notes:
            self.turns.append(self._notes)
        self._notes = []

    def block(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.assign(name, value)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                self.assign(name, ast.BinOp(ast.Name(name, ast.Load()), op, value))
            case ast.If(test=test, body=body, orelse=orelse):
                self.block(body if self.test(test) else orelse)
            case ast.For(target=ast.Name(id=name), iter=sequence, body=body):
                self.each(name, self.value(sequence), body)
            case ast.While(test=test, body=body):
                self.repeat(test, body)
            case ast.Return(value=ast.expr() as value):
                raise _Returned(self.returned(value))
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(ast.Name(id=name), "append"), args=[x])
            ):
                self.names[name] = [*self.names[name], self.reduced(x)]
                self.note(f"{name} = {shown(self.names[name])}")
            case _:
                raise PhikitError(f"cannot trace: {ast.unparse(node)}")

    def assign(self, name: str, value: ast.expr) -> None:
        text, result = self.written(value)
        self.names[name] = result
        self.note(f"{name} = {text}")

    def each(self, name: str, values: Sequence[Any], body: Sequence[ast.stmt]) -> None:
        self._in_loop = True
        for value in values:
            self.names[name] = value
            self.note(f"{name} = {shown(value)}")
            self.block(body)
            self.end_line()
        self._in_loop = False

    def repeat(self, test: ast.expr, body: Sequence[ast.stmt]) -> None:
        self._in_loop = True
        while self.test(test):
            self.block(body)
            self.end_line()
        self.end_line()
        self._in_loop = False

    def test(self, node: ast.expr) -> bool:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                a, b = self.reduced(left), self.reduced(right)
                symbol, holds = _COMPARISONS[type(op)]
                result = holds(a, b)
                self.note(f"{shown(a)} {symbol} {shown(b)} is {'true' if result else 'false'}")
                return result
        raise PhikitError(f"cannot trace the condition {ast.unparse(node)}")

    def returned(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp):
            text, result = self.written(node)
            self.note(f"return {text}")
            return result
        return self.value(node)

    def written(self, node: ast.expr) -> tuple[str, Any]:
        """("2 + 3 = 5", 5) for `a + b`, after notes for the parts that are calculated first."""
        if not isinstance(node, ast.BinOp):
            result = self.value(node)
            return shown(result), result
        a, b = self.reduced(node.left), self.reduced(node.right)
        symbol, apply = _OPERATORS[type(node.op)]
        result = apply(a, b)
        if isinstance(a, str):
            return shown(result), result
        return f"{a} {symbol} {b} = {result}", result

    def reduced(self, node: ast.expr) -> Any:
        """The value; a calculation inside is noted."""
        text, result = self.written(node)
        if isinstance(node, ast.BinOp) and not isinstance(result, str):
            self.note(text)
        return result

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.names[name]
            case ast.List(elts=elements):
                return [self.value(e) for e in elements]
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)][1](self.value(left), self.value(right))
            case ast.Call(func=ast.Name(id="range"), args=arguments):
                return range(*(self.value(a) for a in arguments))
            case ast.Call(func=ast.Name(id="len"), args=[argument]):
                return len(self.value(argument))
        raise PhikitError(f"cannot trace the expression {ast.unparse(node)}")


def shown(value: Any) -> str:
    """A value as Python writes it, with double quotes around text."""
    return f'"{value}"' if isinstance(value, str) else str(value)
