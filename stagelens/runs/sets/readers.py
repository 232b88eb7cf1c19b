"""Files and images that people have, read as ``write_set`` takes them.

Images of a folder stay paths until ``write_set`` reads them one by one, so a large folder costs no
memory. Labels and ids stay the text of the file: ``007`` is not 7.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stagelens.contracts import SetError

from .columns import ROLES, SetColumns
from .tables import FILE_KINDS, Table, listing, read_table, saved_splits

_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NPZ_IMAGES = ("images", "image", "x", "X", "test_images", "x_test", "X_test")
_NPZ_LABELS = ("label", "labels", "y")
_EXPLICIT = ("prompt", "rejected")
"""Roles for which "" says that the column of the usual name does not play them."""
_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})
# At most 18 digits, which an int64 holds; ASCII, because \d matches digits of every script.
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_DECIMAL = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]\d+|e[1-9]\d*)?|[+-]?\d+\.\d+E\d+|[+-]?inf|nan",
    re.ASCII | re.I,
)
# Not 12E4 or 3e07, which are codes more often than numbers.
_PADDED = re.compile(r"[+-]?0\d+", re.ASCII)
_TRUTH = {"True": True, "true": True, "False": False, "false": False}


@dataclass(frozen=True)
class _Options:
    """What was asked for, with columns of usual names filled in.

    Attributes:
        asked: The original request; messages name its options.
        roles: Role (``"label"``) to the column that plays it; None if none was named.
        needs_labels: Whether the column ``label`` has to be there.
    """

    asked: SetColumns
    roles: dict[str, str | None]
    needs_labels: bool

    @classmethod
    def of(cls, asked: SetColumns, needs_labels: bool) -> _Options:
        """The options as asked for; a command line gives "" for no column."""
        roles = {role: getattr(asked, role) for role in ROLES}
        none = {role: None for role in ROLES if roles[role] == "" and role not in _EXPLICIT}
        return cls(asked, {**roles, **none}, needs_labels)

    def named(self, role: str) -> str:
        """How the caller names a role's column."""
        return self.asked.option(role)

    def playing(self, **roles: str | None) -> _Options:
        """The same options with other columns in some roles."""
        return replace(self, roles={**self.roles, **roles})


def read_set_file(
    path: str | Path, columns: SetColumns | None = None, *, needs_labels: bool = True
) -> dict[str, Any]:
    """Read a file or folder of examples as keyword arguments of ``write_set``.

    - An image folder has a ``metadata.csv`` (or ``.jsonl``, ``.parquet``) with a column
      ``file_name``, as for the ``imagefolder`` of Hugging Face ``datasets``, or one subfolder per
      class. Ids are the file names.
    - ``.csv``, ``.tsv``, ``.jsonl`` and ``.json`` hold texts, or paths of images relative to their
      folder.
    - ``.parquet`` holds texts, or images as bytes, paths or ``{bytes, path}`` as ``datasets``
      writes them; so does a folder that ``Dataset.save_to_disk`` wrote. Class names that
      ``datasets`` keeps there are used.
    - ``.npz`` holds images as ``images``, ``x`` or ``x_test`` with labels ``labels``, ``y`` or
      ``y_test``; other arrays with one value per image are metadata.

    Args:
        path: The file or folder.
        columns: Which columns play which role; None for the usual ones.
        needs_labels: Whether the column ``label`` has to be there if no other is named.

    Returns:
        ``images``, ``texts`` or ``inputs``, and ``labels``, ``ids``, ``columns``, ``left_out``,
        ``from_file``.

    Raises:
        SetError: The file cannot be read as a set; names file and row, and what to do.
    """
    path = Path(path)
    asked = columns or SetColumns()
    options = _Options.of(asked, needs_labels)
    splits = saved_splits(path) if path.is_dir() else None
    if splits:
        if asked.split not in splits:
            raise SetError(f"{path} has the splits {listing(splits)}; name one: {asked.a_split}")
        path = path / str(asked.split)
    elif asked.split is not None:
        raise SetError(f"{path} has no splits; read it without {asked.a_split}")
    _check_roles(path, options, saved=splits is not None)
    if path.is_dir() and splits is None:
        return _read_folder(path, options)
    return _keywords(path, read_table(path), options)


def _check_roles(path: Path, options: _Options, saved: bool) -> None:
    """Refuse columns that do not fit together, or do not fit this kind of file."""
    roles = options.roles
    texts = [role for role in ("text", "other", "completion", "prompt", "rejected") if roles[role]]
    pictures = (path.is_dir() and not saved) or path.suffix.lower() == ".npz"
    if texts and (roles["image"] or pictures):
        raise SetError(
            f"{path} was asked for images and texts at the same time; name columns of texts of a "
            ".csv, .tsv, .jsonl or .parquet file or a saved dataset, or read images without them"
        )
    if roles["other"] and not roles["text"]:
        raise SetError(
            f"{path}: {options.named('other')} is for what a text is compared with; name the "
            f"column of the texts too: {options.named('text')}"
        )
    own = [role for role in texts if role not in ("other", "rejected" if roles["other"] else "")]
    if roles["text"] and len(own) > 1:
        raise SetError(
            f"{path}: {options.named('text')} is for whole texts, {options.named(own[1])} for "
            "prompts with completions; name one or the other"
        )


def _keywords(path: Path, table: Table, options: _Options) -> dict[str, Any]:
    """Turn the columns of a table into keyword arguments of ``write_set``."""
    left_out: list[str] = []
    if path.suffix.lower() == ".npz":
        options, left_out = _npz_roles(path, table, options)
    options = _with_input(path, table, options)
    roles = options.roles
    for role, name in roles.items():
        if name is not None and name not in table:
            advice = f", or {options.asked.no_labels} for a set without labels"
            raise SetError(
                f"{path} has no {name!r}; it has {listing(table)}: name one of these as "
                f"{options.named(role)}{advice if role == 'label' else ''}"
            )
    # Other kinds of files have types of their own; in these, every cell is text.
    typed = _typed if path.suffix.lower() in (".csv", ".tsv") else lambda values: values
    keywords = {
        "labels": table[roles["label"]] if roles["label"] is not None else None,
        "ids": table[roles["id"]] if roles["id"] is not None else None,
        "columns": {n: typed(values) for n, values in table.items() if n not in roles.values()},
        "left_out": left_out,
        "from_file": True,
    }
    if roles["text"] is not None and roles["other"] is None:
        return {"texts": table[roles["text"]], **keywords}
    if roles["completion"] is not None or roles["other"] is not None:
        several = ("text", "other") if roles["other"] else ("prompt", "completion")
        own = {role: roles[role] for role in (*several, "rejected")}
        return {"inputs": {role: table[name] for role, name in own.items() if name}, **keywords}
    images = table[str(roles["image"])]
    if not isinstance(images, np.ndarray):
        folder = path if path.is_dir() else path.parent
        images = [_image_cell(folder, path, n, cell) for n, cell in enumerate(images, start=1)]
    return {"images": images, **keywords}


def _with_input(path: Path, table: Table, options: _Options) -> _Options:
    """The options, with columns of usual names in roles for which none was named."""
    roles = options.roles
    if not any(roles[role] for role in ("text", "image", "completion")):
        usual = {"text": "text", "image": "image", "file_name": "image", "completion": "completion"}
        found = [name for name in usual if name in table]
        if len(found) != 1:  # with both texts and images, a guess could be wrong
            named = [options.named(role) for role in ("text", "completion", "image")]
            raise SetError(
                f"{path}: name the column that holds the input ({', '.join(named[:2])} or "
                f"{named[2]}); it has {listing(table)}"
            )
        options = options.playing(**{usual[found[0]]: found[0]})
    if roles["id"] is None and "example_id" in table:
        options = options.playing(id="example_id")
    completed = options.roles["completion"] is not None
    several = completed or options.roles["other"] is not None
    optional = several or not options.needs_labels
    # Only the default may be absent: a column that somebody named has to be there.
    if optional and roles["label"] == "label" and "label" not in table:
        options = options.playing(label=None)
    for role in ("prompt", "rejected"):
        own, fits = roles[role], several if role == "rejected" else completed
        if own and not fits:
            raise SetError(
                f"{path}: {options.named(role)} goes with completions; name their column too: "
                f"{options.named('completion')}"
            )
        if own is None and fits and role in table:
            own = role
        options = options.playing(**{role: own or None})
    return options


def _image_cell(folder: Path, path: Path, row: int, cell: Any) -> Path | bytes:
    """A table's image: bytes, a path inside ``folder``, or ``{bytes, path}``."""
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell:
        raise SetError(f"{path}: row {row} has no image; give its path or bytes, or delete the row")
    return _inside(folder, cell, f"{path}: row {row}")


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file ``name`` in ``folder``.

    Raises:
        SetError: It leads out of the folder, directly or by a link, or is absent.
    """
    target = folder / name
    try:
        inside = ".." not in target.relative_to(folder).parts
        inside = inside and target.resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError, RuntimeError):  # elsewhere, a null byte, a loop of links
        inside = False
    if not inside:
        raise SetError(
            f"{where}: {name!r} leads out of {folder}; copy the image into that folder and name "
            "it relative to it"
        )
    try:
        there = target.is_file()
    except OSError:  # a name that the file system does not take
        there = False
    if not there:
        raise SetError(
            f"{where}: {name[:200]!r} is not in {folder}; add the file or delete the row"
        )
    return target


def _read_folder(folder: Path, options: _Options) -> dict[str, Any]:
    """An image folder: described by a metadata file, or with one subfolder per class."""
    left_out: list[str] = []
    # Sorted, so that a folder gives the same rows, and the same digest, on every machine.
    files = sorted(_walk(folder, left_out))
    described = [name for name in files if name.rpartition("/")[2] in _METADATA]
    if len(described) > 1 or (described and "/" in described[0]):
        raise SetError(
            f"{folder} holds {listing(described)}; give a folder with one of {listing(_METADATA)}"
        )
    if described:
        path = _inside(folder, described[0], str(folder))
        table = read_table(path)
        column = options.roles["image"] or "file_name"
        # File names are better ids than row numbers: they stay when images are added.
        if options.roles["id"] is None and column in table:
            table = {"example_id": table[column], **table}
        keywords = _keywords(path, table, options.playing(image=column))
        paths = [image for image in keywords["images"] if isinstance(image, Path)]
        read = {os.path.relpath(image, folder).replace(os.sep, "/") for image in paths}
        reason = f"not listed in {described[0]}"
    else:
        images = [name for name in files if Path(name).suffix.lower() in _SUFFIXES]
        labelled = options.roles["label"] is not None
        stray = next((name for name in images if labelled and name.count("/") != 1), None)
        if not images or stray or not {"label", "", None}.issuperset(options.roles.values()):
            found = f"{stray!r} lies outside a class folder" if stray else f"{len(images)} images"
            if not images:
                raise SetError(f"{folder} holds no image that can be read, but {_kinds(files)}")
            raise SetError(
                f"{folder} has no metadata.csv that names columns ({found}); add one with the "
                "columns file_name and label, or move every image to CLASS/FILE, or give "
                f"{options.asked.no_labels} for images without labels"
            )
        keywords = {
            "images": [_inside(folder, name, str(folder)) for name in images],
            "labels": [name.split("/")[0] for name in images] if labelled else None,
            "ids": images,
            "columns": {},
        }
        read, reason = set(images), "not an image that can be read"
    left_out += [f"{n} ({reason})" for n in files if n not in read and n not in described]
    return {**keywords, "left_out": left_out}


def _kinds(files: Sequence[str]) -> str:
    """What a folder without a readable image holds, and what to do."""
    kinds = Counter(Path(name).suffix.lower() or name for name in files)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4)) or "no file"
    tables = [name for name in files if Path(name).suffix.lower() in FILE_KINDS]
    if tables:
        return f"{found}; give a file instead of the folder, such as {tables[0]!r}"
    return f"{found}; convert the images to one of {', '.join(sorted(_SUFFIXES))}"


def _walk(folder: Path, left_out: list[str]) -> Iterator[str]:
    """Files below ``folder``, with forward slashes; hidden ones skipped, linked folders noted."""
    for root, folders, names in os.walk(folder):
        base = Path(root).relative_to(folder)
        # In place, which is how os.walk learns what not to enter.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [base / name for name in folders if Path(root, name).is_symlink()]
        left_out += [f"{link.as_posix()} (a link to a folder)" for link in links]
        yield from ((base / name).as_posix() for name in names if not name.startswith("."))


def _npz_roles(path: Path, table: Table, options: _Options) -> tuple[_Options, list[str]]:
    """Which arrays of a ``.npz`` file are images and labels; drops those that do not belong."""
    roles = options.roles
    images = roles["image"] or next((key for key in _NPZ_IMAGES if key in table), None)
    if images is None or images not in table:
        raise SetError(
            f"{path} has no array {images or 'of images'}; name it as "
            f"{options.named('image')}, it has {listing(table)}"
        )
    label, words = roles["label"], images.split("_")
    if label == "label":  # by default x_test goes with y_test, images with labels
        split = [word for word in words if word in _SPLITS]
        beside = ["_".join(w) for n in _NPZ_LABELS for w in ([n, *split], [*split, n])]
        label = next((key for key in (*beside, *_NPZ_LABELS) if key in table), label)
    left_out = []
    for key in [key for key in table if key not in (images, label, roles["id"])]:
        # By name too: x_train may happen to have as many rows as x_test.
        other = _SPLITS & set(key.split("_")) - set(words)
        if other or table[key].shape != table[images].shape[:1]:
            del table[key]
            left_out.append(f"{key} (an array that does not go with {images})")
    return options.playing(image=images, label=label), left_out


def _too_long(cell: str) -> bool:
    """Whether a whole number has more digits than a float64 tells apart."""
    digits = cell.lstrip("+-")
    return digits.isdecimal() and (len(digits) > 16 or int(digits) > 2**53)


def _typed(values: list[Any]) -> list[Any]:
    """Metadata cells of a CSV file as truth values or numbers if all can be read so, else as text.

    A column stays text where a number would not be what the cell says: ``007`` would lose its
    zeros, an id of 19 digits its last ones, and ``12E4`` is a code rather than 120000.
    """
    given = [v for v in values if v]
    convert: Any = str
    if all(v in _TRUTH for v in given):
        convert = _TRUTH.__getitem__
    elif not any(_PADDED.fullmatch(v) for v in given):
        if all(_INTEGER.fullmatch(v) for v in given):
            convert = int
        elif all(_DECIMAL.fullmatch(v) for v in given) and not any(map(_too_long, given)):
            convert = float
    return [convert(v) if v else None for v in values]
