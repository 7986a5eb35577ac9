"""pydantic's errors about a request, in plain words."""

from collections.abc import Callable, Sequence
from typing import Any

WORDS = {
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
    "string_type": "is not a text",
    "extra_forbidden": "is not an option here",
    "greater_than_equal": "is too small; the least is {ge}",
    "greater_than": "is too small; it must be above {gt}",
    "less_than_equal": "is too large; the most is {le}",
    "less_than": "is too large; it must be below {lt}",
    "literal_error": "is not one of {expected}",
    "too_short": "is not enough; at least {min_length} are needed",
    "too_long": "is too much; at most {max_length} are taken",
}


def own(problems: Sequence[Any]) -> list[Any]:
    """Problems without what follows from others: too few values of an option of which one is wrong."""
    wrong = {problem["loc"][0] for problem in problems if len(problem["loc"]) > 1}
    return [one for one in problems if one["type"] != "too_short" or one["loc"][0] not in wrong]


def describe(problem: Any, name_of: Callable[[str], str]) -> str:
    """One line for one of pydantic's problems; `name_of` gives the name that the user knows a field by."""
    if not problem["loc"]:  # of the whole request
        return str(problem.get("ctx", {}).get("error", problem["msg"]))
    name = name_of(str(problem["loc"][0]))
    if problem["type"] == "value_error":
        return f"{name}: {problem['ctx']['error']}"
    if problem["type"] == "missing":
        return (
            f"{name} {problem['input']!r} has too few values"
            if len(problem["loc"]) > 1
            else f"{name} is missing"
        )
    if isinstance(problem["loc"][-1], str) and len(problem["loc"]) > 1:  # of a control
        name = f"{name} {problem['loc'][-1]}"
    if template := WORDS.get(problem["type"]):
        return f"{name} {problem['input']!r} {template.format_map(problem.get('ctx') or {})}"
    return f"{name} {problem['input']!r} {str(problem['msg']).removeprefix('Input ')}"
