"""Which columns of a file make an evaluation set."""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("label", "id", "text", "other", "image", "completion", "prompt", "rejected")
"""What a column can be in a set: the fields of :class:`SetColumns` that name one."""


@dataclass(frozen=True)
class SetColumns:
    """The columns of a file that play a role in an evaluation set; all others become metadata.

    If no column of inputs is named, the input is the column ``text``, ``image``, ``file_name`` or
    ``completion``.

    Attributes:
        label: Where the labels are; None or "" for a set without labels. Class folders and
            completions need no such column.
        id: Where unique ids are; by default ``example_id`` if there is one, else row numbers.
        text: Where the texts are.
        other: Where the texts are that these are compared with.
        completion: Where completions are.
        prompt: Where their prompts are; by default ``prompt`` if there is one, "" for none.
        rejected: Where rejected completions, or texts, are; by default ``rejected`` if there is
            one, "" for none.
        image: Where the images or their paths are; for ``.npz`` the key of the images.
        split: Which split of a saved ``DatasetDict``.
        flags: Whether messages name these as options of the command line, not as arguments.
    """

    label: str | None = "label"
    id: str | None = None
    text: str | None = None
    other: str | None = None
    completion: str | None = None
    prompt: str | None = None
    rejected: str | None = None
    image: str | None = None
    split: str | None = None
    flags: bool = False

    def option(self, role: str) -> str:
        """How the caller names a role's column."""
        return f"--{role}-column" if self.flags else f"SetColumns({role}=...)"

    @property
    def no_labels(self) -> str:
        """How the caller says that a set has no labels."""
        return '--label-column ""' if self.flags else "SetColumns(label=None)"

    @property
    def a_split(self) -> str:
        """How the caller names a split."""
        return "--split NAME" if self.flags else "SetColumns(split=NAME)"
