"""Checkpoints on the Hugging Face hub: ids with revisions, through the hub's own local cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagelens.contracts import RunError

from .checkpoints import BINS

_SCHEME = "hf://"
_ID = re.compile(
    r"(?:hf://)?(?P<repository>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)"
    r"(?:@(?P<revision>[^@\s]+))?"
)
_READ = ("*.json", "*.txt", "*.model", "*.jinja", "*.yml", "*.yaml")
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")
_PICKLES = (BINS, "adapter_model*.bin")
# Other formats in subfolders, and variants such as model.fp16.safetensors.
_NOT_READ = ("*/*", "*.*.safetensors")


@dataclass(frozen=True)
class HubId:
    """A repository on the hub at a revision: a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


def hub_id(address: str | Path) -> HubId | None:
    """The hub id that an address is; None if it is a folder or another address.

    ``hf://OWNER/NAME@REVISION`` always is one. ``OWNER/NAME``, with or without a revision, is one
    where there is no folder ``OWNER`` here; names without an owner need ``hf://`` or a revision.

    Raises:
        RunError: It begins with ``hf://``, but is no id.
    """
    text = str(address)
    match = _ID.fullmatch(text)
    if text.startswith(_SCHEME):
        if match is None:
            raise RunError(f"{text} is no id on the hub; give hf://OWNER/NAME@REVISION")
    elif match is None or Path(text).exists() or Path(text.partition("/")[0]).exists():
        return None
    elif "/" not in match["repository"] and match["revision"] is None:
        return None  # a name alone is rather that of a folder which is missing
    return HubId(match["repository"], match["revision"] or "main")


def fetch(name: str, wanted: HubId, *, allow_bin: bool = False) -> Path:
    """The folder of a repository in the hub's cache, after what is missing there was downloaded.

    Without a network, or with ``HF_HUB_OFFLINE=1``, what the cache has is taken.

    Args:
        name: The user's name for the checkpoint.
        wanted: The repository and its revision.
        allow_bin: Fetch pickles of weights where there are no safetensors.

    Raises:
        RunError: It is not there, access to it is restricted, or it cannot be reached.
    """
    folder = _snapshot(name, wanted, [*_READ, *_WEIGHTS])
    if not _has(folder, _WEIGHTS) and allow_bin:
        folder = _snapshot(name, wanted, [*_READ, *_PICKLES])
    if not _has(folder, _WEIGHTS) and not (allow_bin and _has(folder, _PICKLES)):
        raise RunError(
            f"{name}: {wanted} holds no weights as safetensors; choose another revision"
            + ("" if allow_bin else ", or allow to open pickles without their code (--allow-bin)")
        )
    return folder


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _snapshot(name: str, wanted: HubId, patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{name}: {wanted.repository}"
    options: dict[str, Any] = {
        "revision": wanted.revision,
        "allow_patterns": patterns,
        "ignore_patterns": list(_NOT_READ),
        "local_files_only": constants.HF_HUB_OFFLINE,
    }
    try:
        return Path(snapshot_download(wanted.repository, **options))
    except GatedRepoError:
        raise RunError(
            f"{where} is gated: accept its terms on https://huggingface.co/{wanted.repository}, "
            "then log in with a token that may read it (hf auth login, or HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise RunError(
            f"{where} has no revision {wanted.revision!r}; its branches and tags are listed on "
            f"https://huggingface.co/{wanted.repository}/tree/main"
        ) from None
    except RepositoryNotFoundError:
        raise RunError(
            f"{where} is neither a folder here nor a repository on the hub; check the spelling, "
            "or log in if it is private (hf auth login, or HF_TOKEN)"
        ) from None
    except HFValidationError as error:
        raise RunError(f"{where} is no id on the hub ({error})") from None
    except LocalEntryNotFoundError:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub is out of reach"
        raise RunError(
            f"{where} is no folder here, its revision {wanted.revision!r} is not in the hub's "
            f"cache ({constants.HF_HUB_CACHE}), and {reason}; download it where there is a "
            f"network: hf download {wanted.repository} --revision {wanted.revision}"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{where} at {wanted.revision!r} cannot be fetched ({reason})") from None
