"""What people say of a run that cannot be seen in it: who, why, by what licence, on what data.

It is kept in ``description.json`` of the run folder. Nothing that is computed depends on it, so it
can be written and changed at any time without a number becoming another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from stagelens.contracts import StageLensError

from .boundary_facts import STRICT
from .files import check_changeable, read_json, write_json
from .run import Run
from .schema import Name, Versioned

FILE = "description.json"
_LONGEST = 4000

ASKED = "? "
"""What names of fields begin with that only say what the next field asks."""
_HOW = (
    'Replace null by an answer in quotes (base_operations by a number such as 3e21); null is "not '
    'known". Lines whose name begins with "? " are questions, and are not read.'
)
Answer = Annotated[str, Field(max_length=_LONGEST)]

OF_RUN = {
    "responsible": "Who answers for this model (organisation or person, and how to reach them)?",
    "purpose": "What is the model meant to be used for?",
    "licence": "Under which licence is the final model given?",
    "limits": "What is it known not to do well, or not meant for?",
    "base": "What did training start from (random weights, or the name of a model)?",
    "base_licence": "Under which licence was that given?",
    "base_operations": "How many floating-point operations did training that take (such as 3e21)?",
}
"""Questions about a run as a whole, by field."""

OF_STAGE = {
    "by": "Who trained it?",
    "date": "When?",
    "objective": "What was it meant to achieve?",
    "rationale": "Why was it done this way (choice of data, method, stopping)?",
    "data": "On what data (source, size, how it was collected and cleaned)?",
    "data_licence": "Under which licence, or on which legal basis, is that data used?",
    "licence": "Under which licence were the weights after it given?",
    "hardware": "On what hardware?",
}
"""Questions about one stage, by field."""


class StageAnswers(BaseModel):
    """What is said of one stage; see :data:`OF_STAGE`. None where nothing was said."""

    model_config = STRICT

    by: Answer | None = None
    date: Answer | None = None
    objective: Answer | None = None
    rationale: Answer | None = None
    data: Answer | None = None
    data_licence: Answer | None = None
    licence: Answer | None = None
    hardware: Answer | None = None


class RunAnswers(Versioned):
    """What is said of a run; see :data:`OF_RUN`. None where nothing was said."""

    responsible: Answer | None = None
    purpose: Answer | None = None
    licence: Answer | None = None
    limits: Answer | None = None
    base: Answer | None = None
    base_licence: Answer | None = None
    base_operations: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    stages: dict[Name, StageAnswers] = Field(default_factory=dict)

    def of(self, stage: str) -> StageAnswers:
        """What is said of a stage."""
        return self.stages.get(stage) or StageAnswers()


def answers(run: Run) -> RunAnswers:
    """What was said of a run so far.

    Raises:
        RunError: The file is damaged; names it.
    """
    path = run.files.inside(FILE)
    return read_json(path, RunAnswers) if path.is_file() else RunAnswers()


def from_given(run: Run, given: object, source: str) -> RunAnswers:
    """Answers of a JSON document, over those that the run has: ``null`` takes one back.

    Args:
        run: The run.
        given: The document, as :func:`document` makes it; fields may be missing.
        source: What to name in errors.

    Raises:
        StageLensError: It names no field or stage of this run; says which there are.
    """
    if not isinstance(given, dict):
        raise StageLensError(f"{source}: give a JSON object with the fields {_fields(OF_RUN)}")
    given = _answered(given)
    unknown = given.keys() - {*OF_RUN, "stages", "version"}
    if unknown:
        raise StageLensError(
            f"{source}: there is no field {_fields(unknown)}; there are {_fields(OF_RUN)}, stages"
        )
    merged = answers(run).model_dump()
    merged.update({name: given[name] for name in OF_RUN if name in given})
    stages = given.get("stages") or {}
    if not isinstance(stages, dict):
        raise StageLensError(f"{source}: stages: give an object, stage name to its fields")
    names = [stage.name for stage in run.stages]
    for name, said in stages.items():
        if name not in names:
            raise StageLensError(
                f"{source}: the run has no stage {name!r}; it has {', '.join(names)}"
            )
        said = _answered(said) if isinstance(said, dict) else said
        if not isinstance(said, dict) or said.keys() - OF_STAGE.keys():
            raise StageLensError(
                f"{source}: stages: {name}: give an object with fields of {_fields(OF_STAGE)}"
            )
        merged["stages"][name] = {**(merged["stages"].get(name) or {}), **said}
    return _checked(merged, source)


def operations_of(text: str) -> float:
    """Floating-point operations as people write them.

    Raises:
        StageLensError: It is no number.
    """
    try:
        return float(text)
    except ValueError:
        raise StageLensError(
            f"{text!r} is no number of floating-point operations; give one like 3e21"
        ) from None


def document(run: Run) -> dict[str, Any]:
    """All fields as a JSON document, with what was said so far."""
    said = answers(run)
    stages = {stage.name: said.of(stage.name).model_dump() for stage in run.stages}
    return {**{name: getattr(said, name) for name in OF_RUN}, "stages": stages}


def template(run: Run) -> dict[str, Any]:
    """The same to be filled in by hand: a text before each field says what it asks.

    :func:`from_given` leaves out these texts, whose names begin with :data:`ASKED`.
    """
    made = document(run)
    stages = {name: _explained(of, OF_STAGE) for name, of in made.pop("stages").items()}
    head = {f"{ASKED}how": _HOW}
    return {**head, **_explained(made, OF_RUN), "stages": stages}


def _explained(fields: Mapping[str, Any], questions: Mapping[str, str]) -> dict[str, Any]:
    return {
        key: value
        for name, own in fields.items()
        for key, value in ((f"{ASKED}{name}", questions[name]), (name, own))
    }


def _answered(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if not name.startswith(ASKED)}


def keep(run: Run, said: RunAnswers) -> None:
    """Keep answers with the run.

    Raises:
        RunError: The run folder cannot be written; says what to do.
    """
    check_changeable("Descriptions")
    write_json(run.files.inside(FILE), said)


def unanswered(run: Run, said: RunAnswers) -> dict[str, list[str]]:
    """Fields that nothing was said of: of the run under ``""``, and of each stage by its name."""
    found = {"": [name for name in OF_RUN if getattr(said, name) is None]}
    for stage in run.stages:
        own = said.of(stage.name)
        found[stage.name] = [name for name in OF_STAGE if getattr(own, name) is None]
    return {name: fields for name, fields in found.items() if fields}


def _checked(content: Mapping[str, Any], source: str) -> RunAnswers:
    try:
        return RunAnswers.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ": ".join(str(part) for part in first["loc"])
        raise StageLensError(f"{source}: {field}: {first['msg']}") from None


def _fields(names: Any) -> str:
    return ", ".join(sorted(names) if isinstance(names, set) else names)
