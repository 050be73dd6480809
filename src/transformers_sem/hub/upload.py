"""Sending a folder to the Hub: who is allowed to is known first, and one commit has all or nothing.

The token is the one that `huggingface_hub` finds: `HF_TOKEN`, or the file that `hf auth login` writes.
"""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id


LOG_IN = "Log in with `hf auth login` or set HF_TOKEN, to a token that may write there"


def create_repository(name: str, *, repo_type: str, private: bool) -> str:
    """Makes a repository, or takes the one that is there; returns its full name.

    Args:
        name (`str`): "USER/NAME", or NAME alone for whoever is logged in.
        repo_type (`str`): "model" or "dataset".
        private (`bool`): Whether nobody else may see it; otherwise it is as the account has it by default.

    Raises:
        ValueError: If the Hub has no such names.
        OSError: If nobody is logged in, the Hub refuses or cannot be reached, or what must be private is public.
    """
    validate_repo_id(name)
    if get_token() is None:
        raise OSError(f"Nobody is logged in to the Hub, so nothing is sent to {name}. {LOG_IN}.")
    api = HfApi()
    try:
        repository = api.create_repo(name, repo_type=repo_type, private=private or None, exist_ok=True).repo_id
        is_public = private and not api.repo_info(repository, repo_type=repo_type).private
    except Exception as error:  # the client also raises the errors of its HTTP library
        raise OSError(f"The Hub did not make {name}: {explain(error)}") from error
    if is_public:
        raise OSError(
            f"{repository} is to be private, and is there already, for all to see. Make it private in its settings, or choose "
            "another name."
        )
    return repository


def upload(
    folder: Path,
    repository: str,
    *,
    repo_type: str,
    message: str | None = None,
    delete_patterns: list[str] | None = None,
) -> str:
    """Uploads the files of a folder as one commit; returns its address.

    Args:
        folder (`Path`): What to send.
        repository (`str`): Its full name.
        repo_type (`str`): "model" or "dataset".
        message (`str`, *optional*): Of the commit.
        delete_patterns (`list[str]`, *optional*): Files there that go with the same commit, unless they are sent anew.

    Raises:
        OSError: If the Hub refuses, or cannot be reached; the repository is then as it was.
    """
    try:
        return (
            HfApi()
            .upload_folder(
                repo_id=repository,
                folder_path=folder,
                repo_type=repo_type,
                commit_message=message,
                delete_patterns=delete_patterns,
            )
            .commit_url
        )
    except Exception as error:  # the client also raises the errors of its HTTP library
        raise OSError(
            f"The upload to {repository} broke off, which is as it was: {explain(error)} What has arrived is not sent twice."
        ) from error


def explain(error: Exception) -> str:
    """What an error of the client says, in a line, and what to do about it."""
    response = getattr(error, "response", None)  # errors of the connection have none
    is_refused = response is not None and response.status_code in (401, 403)
    remedy = f"{LOG_IN}, and run the same command again." if is_refused else "Run the same command again."
    return f"{' '.join(str(error).split()).rstrip('.')}. {remedy}"
