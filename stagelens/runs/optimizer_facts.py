"""What stage.json says of a stage's optimiser."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from .boundary_facts import STRICT


class ParameterGroup(BaseModel):
    """One of the optimiser's parameter groups, parameters by name."""

    model_config = STRICT

    parameters: list[str]
    hyperparameters: dict[str, Any]


class OptimizerMember(BaseModel):
    """One of several optimisers that make an update together, and how many groups are its own."""

    model_config = STRICT

    name: str
    groups: int = Field(ge=0)
    flags: dict[str, Any]


class OptimizerFacts(BaseModel):
    """The optimiser of a stage, as replay rebuilds it.

    In an assembled run it comes from a Trainer's checkpoint, which does not name the parameters.

    Attributes:
        name: As registered; of several, all their names.
        groups: Its parameter groups; of several, one optimiser's after the other's.
        flags: What its class is given beside the groups; of several, each has its own.
        members: The optimisers, where there are several.
    """

    model_config = STRICT

    name: str
    groups: list[ParameterGroup]
    flags: dict[str, Any]
    members: list[OptimizerMember] = []

    def each(self) -> list[OptimizerMember]:
        """The optimisers, one or several."""
        one = OptimizerMember(name=self.name, groups=len(self.groups), flags=self.flags)
        return self.members or [one]


class EndOptimizer(BaseModel):
    """What an optimiser kept at a stage's end, told from any other state without storing it.

    Attributes:
        digests: Parameter to the start of a sha256 over all that the optimiser keeps for it.
        bytes: How much that takes.
    """

    model_config = STRICT

    digests: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]]
    bytes: int = Field(ge=0)
