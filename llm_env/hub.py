"""Whether the Hugging Face hub has a model or a dataset, asked once: its libraries try for half a minute before giving up."""

from __future__ import annotations

from pathlib import Path

TIMEOUT = 10
"""Seconds in which the hub is to answer."""


def why_not(name: str, kind: str) -> str | None:
    """Why a model or a dataset cannot be had from the hub; None where it is in the cache, or the hub has it.

    Args:
        name: Its id on the hub.
        kind: ``model`` or ``dataset``.
    """
    from huggingface_hub import HfApi, constants  # takes a moment to import
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    if Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}").is_dir():
        return None
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT)
    except RepositoryNotFoundError:
        return f"the hub has no such {kind}, or none that you may see"
    except HFValidationError:
        return "the hub has no such names"
    except HfHubHTTPError:  # the libraries know better when to try again
        return None
    except Exception as error:  # of its HTTP library, which differs between versions
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"the hub cannot be asked: {lines[0].rstrip('.')}"
    return None
