"""Code that Dynamo has not met: what it knows of a function it keeps by the function's code."""

from collections.abc import Callable
from types import FunctionType
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def code_of_its_own(function: Callable[P, R]) -> Callable[P, R]:
    """A copy of a plain `function` that Dynamo takes for another one."""
    given = cast(FunctionType, function)
    code, variables = given.__code__.replace(), given.__globals__
    return cast(Callable[P, R], FunctionType(code, variables, closure=given.__closure__))
