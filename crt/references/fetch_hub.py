"""Get one file from the Hugging Face hub (or HF_ENDPOINT), into the hub's own cache on this machine."""

import os
import re
from pathlib import Path

from crt.errors import UserError
from crt.references.fetch import check_scheme


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit hash, which fixes the file."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def get_hub_file(repo: str, file: str, revision: str) -> tuple[Path, str | None]:
    """The file's place in the cache (HF_HOME), and the SHA-256 that the hub states for it, if it states one.

    The hub's library sends the token of `hf auth login` or HF_TOKEN, resumes what broke off and downloads
    nothing twice.

    Raises:
        UserError: No such repository, revision or file, no permission to read it, or it cannot be downloaded.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    check_scheme(endpoint)  # a token goes there
    try:
        place = Path(hf_hub_download(repo, file, revision=revision, endpoint=endpoint))
    except errors.GatedRepoError:
        raise UserError(
            f"{repo} on the hub is gated: accept its terms on its page and set HF_TOKEN to a token "
            "that may read it"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"the hub shows no repository {repo}: check its name and, if it is private, "
            "set HF_TOKEN to a token that may read it"
        ) from None
    except errors.RevisionNotFoundError:
        known = ", ".join(_revisions(repo, endpoint)) or "none"
        raise UserError(f"{repo} on the hub has no revision {revision!r}: choose one of {known}") from None
    except errors.RemoteEntryNotFoundError:
        raise UserError(f"{repo}@{revision} on the hub has no file {file!r}: check its name") from None
    except Exception as error:  # also of the HTTP library that the hub's library happens to use
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"{repo}@{revision}/{file} could not be downloaded from the hub at {endpoint} ({reason}): "
            "check the network and HF_ENDPOINT, then run again to continue"
        ) from None
    # In the cache, a file is a link to one that is named by its hash: a SHA-256 for all that is large.
    stated = place.resolve().name
    return place, stated if re.fullmatch(r"[0-9a-f]{64}", stated) else None


def _revisions(repo: str, endpoint: str) -> list[str]:
    from huggingface_hub import HfApi

    refs = HfApi(endpoint=endpoint).list_repo_refs(repo)
    return [ref.name for ref in (*refs.tags, *refs.branches)]
