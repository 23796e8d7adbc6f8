"""Which nodes a model belongs on: a small matcher over labels, and who of those that match holds one of N copies.

The operators and their meaning are those of Kubernetes' node affinity: terms are alternatives, the expressions of one
term must all hold. Copies are chosen by rendezvous hashing (Thaler and Ravishankar, "A Name-Based Mapping Scheme for
Rendezvous", 1996): every node computes the same choice from the same list, and a node that comes or goes moves only its
own share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Operator = Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
Label = Annotated[str, Field(min_length=1, max_length=253)]
_VALUELESS = ("Exists", "DoesNotExist")
_NUMERIC = ("Gt", "Lt")


class Strict(BaseModel):
    """Base of what people write: frozen, and every field must be known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Expression(Strict):
    """One condition on one label."""

    key: Label
    operator: Operator
    values: tuple[Annotated[str, Field(max_length=253)], ...] = Field(default=(), max_length=256)

    @model_validator(mode="after")
    def _values_suit(self) -> Self:
        if self.operator in _VALUELESS and self.values:
            raise ValueError(f"{self.operator} takes no values")
        if self.operator in ("In", "NotIn") and not self.values:
            raise ValueError(f"{self.operator} needs at least one value")
        if self.operator in _NUMERIC and (len(self.values) != 1 or _whole(self.values[0]) is None):
            raise ValueError(f"{self.operator} needs exactly one whole number")
        return self

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels of a node meet it. `NotIn` also holds where the label is missing."""
        found = labels.get(self.key)
        if self.operator in _VALUELESS:
            return (found is not None) == (self.operator == "Exists")
        if self.operator in ("In", "NotIn"):
            return (found in self.values) == (self.operator == "In")
        number, bound = _whole(found), _whole(self.values[0])
        if number is None or bound is None:
            return False
        return number > bound if self.operator == "Gt" else number < bound


class Term(Strict):
    """Expressions that must all hold."""

    match: tuple[Expression, ...] = Field(min_length=1, max_length=64)

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether all do."""
        return all(each.holds(labels) for each in self.match)


class Preference(Strict):
    """Nodes that meet `term` come first among those that may."""

    weight: int = Field(ge=1, le=100)
    term: Term


class Selector(Strict):
    """Which nodes may hold a model: all labels of `labels`, and one of `terms` if there are any.

    An empty selector takes every node.
    """

    labels: dict[Label, str] = Field(default_factory=dict[str, str], max_length=64)
    terms: tuple[Term, ...] = Field(default=(), max_length=64)
    preferred: tuple[Preference, ...] = Field(default=(), max_length=64)

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels may."""
        if any(labels.get(key) != value for key, value in self.labels.items()):
            return False
        return not self.terms or any(term.holds(labels) for term in self.terms)

    def weight(self, labels: Mapping[str, str]) -> int:
        """How much a node is preferred."""
        return sum(each.weight for each in self.preferred if each.term.holds(labels))


def holders(model: str, nodes: Iterable[tuple[str, int]], copies: int) -> tuple[str, ...]:
    """The nodes that hold the model's copies, of (node, weight) that may: the heaviest first, and among equals by
    rendezvous hashing. The same for whoever computes it."""
    ranked = sorted(nodes, key=lambda each: (-each[1], _score(model, each[0]), each[0]))
    return tuple(node for node, _ in ranked[: max(copies, 0)])


def _score(model: str, node: str) -> bytes:
    return hashlib.blake2b(f"{model}\0{node}".encode(), digest_size=16).digest()


def _whole(text: str | None) -> int | None:
    try:
        return int(text) if text is not None and len(text) <= 20 else None
    except ValueError:
        return None
