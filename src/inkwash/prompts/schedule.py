"""Prompts that change while a picture is drawn: [from:to:when] and [a|b], in A1111's notation."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
TOKEN = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]++|\\", re.DOTALL)
PARTNER = {"]": "[", ")": "(", "[": "]", "(": ")"}


@dataclass
class Bracket:
    """The content between two brackets, or the whole prompt: parts of text and brackets, between separators."""

    opening: str = ""
    parts: list[list["str | Bracket"]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)
    when: int | None = None  # of a schedule: the last step of what comes first
    closed: bool = False

    @property
    def alternates(self) -> bool:
        return self.closed and self.opening == "[" and set(self.separators) == {"|"}

    def at(self, step: int) -> list["str | Bracket"]:
        """The parts that hold at a step, counted from 1."""
        if self.when is not None:
            before, after = self.parts if len(self.parts) == 2 else ([], self.parts[0])
            return before if step <= self.when else after
        if self.alternates:
            return self.parts[(step - 1) % len(self.parts)]
        written: list[str | Bracket] = [self.opening]
        for separator, part in zip(["", *self.separators], self.parts, strict=True):
            written += [separator, *part]
        return [*written, PARTNER[self.opening]] if self.closed else written


def schedule(text: str, steps: int) -> list[list[Any]]:
    """The prompts of a run of `steps` steps: [end, text], each with the last step, from 1, at which it holds.

    [from:to:when] is `from` up to the step `when` and `to` after it; [to:when] begins and [from::when] ends with
    nothing. `when` with a point is a fraction of the steps, without one a step. [a|b] takes turns. They nest.
    What is none of these stays as it is written, such as a bracket without its partner. Takes time linear in the
    text for each prompt that it returns. Raises ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps {steps} is less than 1")
    root, changing = parse(text, steps)
    ends = {steps} | {bracket.when for bracket in changing if bracket.when is not None and bracket.when >= 1}
    if any(bracket.alternates for bracket in changing):
        ends = set(range(1, steps + 1))
    return [[end, "".join(flat(root, end))] for end in sorted(ends)]


def parse(text: str, steps: int) -> tuple[Bracket, list[Bracket]]:
    """The whole prompt, and the brackets in it that change with the step."""
    stack, changing = [Bracket()], []
    for match in TOKEN.finditer(text):
        token = match[0]
        if token in ("[", "("):
            stack.append(Bracket(token))
        elif token in ("]", ")") and stack[-1].opening == PARTNER[token]:
            bracket = stack.pop()
            close(bracket, steps)
            changing += [bracket] if bracket.when is not None or bracket.alternates else []
            stack[-1].parts[-1].append(bracket)
        elif token in (":", "|") and len(stack) > 1:
            stack[-1].separators.append(token)
            stack[-1].parts.append([])
        else:
            stack[-1].parts[-1].append(token)
    for outer, inner in pairwise(stack):  # never closed, so they are text
        outer.parts[-1].append(inner)
    return stack[0], changing


def unread(text: str) -> str | None:
    """A message on the part of a text that looks like syntax but is taken literally; None where all is clear."""
    opened: list[tuple[str, int]] = []
    for match in TOKEN.finditer(text):
        token, at = match[0], match.start() + 1
        if token in ("[", "("):
            opened.append((token, at))
        elif token in ("]", ")") and (not opened or opened.pop()[0] != PARTNER[token]):
            return f"{token!r} at character {at} has no partner"
    if opened:
        return "{!r} at character {} has no partner".format(*opened[-1])
    brackets = [parse(text, 1)[0]]
    while brackets:
        bracket = brackets.pop()
        if bracket.opening == "[" and bracket.separators and bracket.when is None and not bracket.alternates:
            written = "".join(flat(bracket, 1))
            return (
                f"{written[:40]!r} is neither a schedule, which ends in a number of steps, nor an alternation"
            )
        brackets += [item for part in bracket.parts for item in part if isinstance(item, Bracket)]
    return None


def close(bracket: Bracket, steps: int) -> None:
    """A bracket with one or two colons and a number at its end is a schedule."""
    bracket.closed, last = True, bracket.parts[-1]
    if bracket.opening != "[" or bracket.separators not in ([":"], [":", ":"]):
        return
    if len(last) == 1 and isinstance(last[0], str) and (number := WHEN.fullmatch(last[0])):
        value = float(number[1])
        bracket.when = min(steps, int(value * steps if "." in number[1] else value))
        bracket.parts.pop()


def flat(root: Bracket, step: int) -> Iterator[str]:
    """The text at a step."""
    todo: list[str | Bracket] = [root]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            yield item
        else:
            todo += reversed(item.at(step))
