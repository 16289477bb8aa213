"""A trained actor on the Hugging Face hub (`--push-to-hub`): only what was asked for, after everything is on the disk."""

from __future__ import annotations

from pathlib import Path


def push_actor(folder: Path, repo: str, private: bool) -> str:
    """Uploads an actor's folder, with its card, to a model repository, which is made if need be.

    Args:
        folder: The actor's folder.
        repo: The repository, ``owner/name`` or ``name``.
        private: Whether a repository that is made now is private.

    Returns:
        The address of the commit.

    Raises:
        OSError: the hub cannot be reached, or refuses; the actor is on the disk, and the error says how to upload it later.
    """
    from huggingface_hub import HfApi  # takes a moment to import
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        api = HfApi()
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload actor").commit_url)
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"push_to_hub={repo!r}: {reason}. The actor is in {folder}; upload it later with: hf upload {repo} {folder}"
        ) from error


def check_repo(repo: str) -> None:
    """Refuses a name that no repository can have.

    Raises:
        ValueError: it is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported at run time alone

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"push_to_hub={repo!r} must be the name of a repository, owner/name: {error}") from error
