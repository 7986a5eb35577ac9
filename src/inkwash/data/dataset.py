"""The pictures of a training in buckets, and which of them a step sees.

What a step sees follows from the seed and the step's number alone, so that a run resumes exactly and every process of
several knows its own share.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from inkwash.data.buckets import BucketRules, Placement, Size, place
from inkwash.data.examples import BrokenPicture, Example
from inkwash.data.folders import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filter:
    """Keeps the pictures whose column is on the right side of a value, such as aesthetic > 5."""

    column: str
    sign: str
    value: float

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Parse a filter: a column, a sign and a number, as in "width>=512". Raises DataError for any other text."""
        for sign in (">=", "<=", ">", "<"):
            column, found, value = text.partition(sign)
            if found:
                try:
                    return cls(column.strip(), sign, float(value))
                except ValueError:
                    break
        raise DataError(
            f"filter {text!r} is not a column, one of > >= < <=, and a number, as in 'aesthetic>5'"
        )

    def keeps(self, example: Example) -> bool:
        """Return True if a picture passes the filter. Raises DataError if it has no number in that column."""
        value = example.columns.get(self.column)
        if self.column in ("width", "height"):
            value = example.size[self.column == "height"]
        if not isinstance(value, int | float):
            raise DataError(f"{example.image} has no number in the column {self.column!r} to filter by")
        over, under = value > self.value, value < self.value  # neither for a score that is not a number
        return (over if ">" in self.sign else under) or (value == self.value and "=" in self.sign)


class Dataset:
    """Pictures by bucket, in batches of one bucket each.

    Raises DataError where nothing is left. Broken pictures are named and passed over; with `stop` they raise BrokenPicture.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        rules: BucketRules,
        batch: int,
        seed: int = 0,
        filters: Sequence[Filter] = (),
        stop: bool = False,
    ):
        self.rules, self.batch, self.seed = rules, batch, seed
        self.current: tuple[int, list[list[int]]] = (-1, [])  # the epoch that is under way
        self.examples: list[Example] = []
        self.placements: list[Placement] = []
        self.broken: list[str] = []
        for example in examples:
            try:
                if all(one.keeps(example) for one in filters):
                    self.placements.append(place(example.size, rules))
                    self.examples.append(example)
            except ValueError as error:
                if stop or isinstance(error, DataError):
                    raise
                message = str(error) if isinstance(error, BrokenPicture) else f"{example.image}: {error}"
                log.warning("passed over: %s", message)
                self.broken.append(message)
        if not self.examples:
            raise DataError(
                f"no picture is left of {len(self.broken)} broken ones, after {len(filters)} filters"
            )

    def drop(self, broken: Iterable[int]) -> None:
        """Leave out pictures that turned out to be broken. Raises DataError where none is left."""
        gone = set(broken)
        kept = [i for i in range(len(self.examples)) if i not in gone]
        if not kept:
            raise DataError("every picture is broken")
        self.examples = [self.examples[i] for i in kept]
        self.placements = [self.placements[i] for i in kept]
        for counted in ("buckets", "batches_per_epoch"):
            vars(self).pop(counted, None)
        self.current = (-1, [])

    @cached_property
    def buckets(self) -> dict[Size, list[int]]:
        """The pictures of each bucket, by index, as often as an epoch sees them."""
        found: dict[Size, list[int]] = defaultdict(list)
        for i, (example, placement) in enumerate(zip(self.examples, self.placements, strict=True)):
            found[placement.bucket] += [i] * example.repeats
        return dict(sorted(found.items()))

    @cached_property
    def batches_per_epoch(self) -> int:
        return sum(-(-len(indices) // self.batch) for indices in self.buckets.values())

    def batch_at(self, number: int) -> list[int]:
        """The pictures of batch `number`, counted over all epochs."""
        epoch, k = divmod(number, self.batches_per_epoch)
        if self.current[0] != epoch:
            self.current = epoch, self.epoch(epoch)
        return self.current[1][k]

    def from_here(self, i: int) -> list[int]:
        """The pictures of a bucket from i on, and then those before it: any after i can stand in for it."""
        bucket = self.buckets[self.placements[i].bucket]
        first = bucket.index(i)
        return [*bucket[first:], *bucket[:first]]

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of an epoch, in random order. A bucket's last batch is filled with pictures that come again."""
        random, batches = Random(f"{self.seed} {number}"), []
        for indices in self.buckets.values():
            order = random.sample(indices, len(indices))
            while len(order) % self.batch:
                order += random.sample(indices, min(len(indices), -len(order) % self.batch))
            batches += [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        random.shuffle(batches)
        return batches
