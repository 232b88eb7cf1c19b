"""A file that names the checkpoints of a run, so that a known history is one command away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stagelens.contracts import StageLensError
from stagelens.runs.schema import check_name
from stagelens.runs.sets.columns import SetColumns

_LARGEST = 10**6
Role = Literal["label", "id", "text", "other", "image", "completion", "prompt", "rejected", "split"]


class RecipeStage(BaseModel):
    """One checkpoint.

    Attributes:
        name: Of the stage that it ends; of the first, of the base.
        model: A folder, relative to the recipe file; an id on the hub; another address.
        revision: A branch, tag or commit of an id on the hub.
        parent: What it was trained from, where that is not the stage before it.
        parents: What it was merged from, if it was not trained.
        about: What this stage trained, for people who read the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model: str = Field(min_length=1)
    revision: str | None = None
    parent: str | None = None
    parents: list[str] = []
    about: str = ""

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str) -> str:
        return check_name(name)

    def address(self, beside: Path) -> str:
        """The checkpoint as :func:`assemble` takes it.

        Args:
            beside: The folder of the recipe file.
        """
        if self.revision is not None:
            return f"{self.model}@{self.revision}"
        here = beside / self.model
        return str(here) if "://" not in self.model and here.exists() else self.model


class Recipe(BaseModel):
    """The checkpoints of a run, in the order of training, and an evaluation set.

    Attributes:
        name: The run's name.
        about: What this history is, and where its ids were looked up.
        task: A task's name, where config.json is not to tell.
        stages: The base, then the end of each stage.
        evaluation: A file to add as evaluation set, relative to the recipe file.
        columns: Which of its columns play which role.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    about: str = ""
    task: str | None = None
    stages: list[RecipeStage] = Field(min_length=2)
    evaluation: str | None = None
    columns: dict[Role, str] = {}

    def checkpoints(self, beside: Path) -> list[tuple[str, str]]:
        """Names and addresses, in order."""
        return [(stage.name, stage.address(beside)) for stage in self.stages]

    def parents(self) -> dict[str, list[str]]:
        """Stage to what it came from, of those that say so."""
        return {
            stage.name: stage.parents or [str(stage.parent)]
            for stage in self.stages
            if stage.parents or stage.parent is not None
        }

    def set_columns(self, given: SetColumns) -> SetColumns:
        """The columns of the evaluation set: those of the recipe where none was given."""
        usual = SetColumns()
        kept = {
            role: column
            for role, column in self.columns.items()
            if getattr(given, role) == getattr(usual, role)
        }
        return replace(given, **kept)  # type: ignore[arg-type]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; YAML, without any tag that makes objects.

    Raises:
        StageLensError: It cannot be read, or says something that it may not; names the place.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise StageLensError(f"{path} is larger than a recipe may be (1 MB)")
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise StageLensError(
            f"{path} cannot be read as YAML ({' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(content, dict):
        raise StageLensError(f"{path} is no recipe; it needs 'stages', a list of name and model")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        more = f", and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise StageLensError(f"{path}: {place}: {first['msg']}{more}") from None
