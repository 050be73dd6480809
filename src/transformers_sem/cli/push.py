"""Upload a trained model to the Hub: weights, image processor, card, scores and example predictions, in one commit.

    transformers-sem push --model runs/quickstart --repo-id USER/NAME [--private] [--custom-code] [--dry-run]

Creates the repository, or updates it: files of an earlier push that this one does not bring are deleted. The card is rendered
from config.json and evaluation.json. With --custom-code the repository also holds the code of the model, so that it loads with
trust_remote_code=True and without this package. --dry-run lists the files and uploads nothing. The token is that of
`hf auth login`, or HF_TOKEN.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..hub.upload import REPLACED, create_repository, file_sizes, stage_model, upload, write_card
from ..utils.errors import plain_errors
from .arguments import command_parser


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("push", __doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--repo-id", required=True, metavar="USER/NAME", help="repository to create or to update")
    parser.add_argument("--private", action="store_true", help="make it private (default: as your account is set)")
    parser.add_argument("--custom-code", action="store_true", help="upload the code of the model too")
    parser.add_argument("--message", default="Upload model, card and scores", help="message of the commit")
    parser.add_argument("--dry-run", action="store_true", help="list the files, upload nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks the model, lays out the files, and uploads them."""
    parsed = build_parser().parse_args(arguments)
    with plain_errors(), TemporaryDirectory() as temporary:
        staging = Path(temporary)
        stage_model(parsed.model, staging, custom_code=parsed.custom_code)
        repository = parsed.repo_id
        if not parsed.dry_run:
            repository = create_repository(repository, repo_type="model", private=parsed.private)
        write_card(staging, repository)
        sizes = file_sizes(staging)
        for name, size in sizes.items():
            print(f"{size:>14,}  {name}")
        print(f"{sum(sizes.values()):>14,}  bytes in {len(sizes)} files, for {repository}")
        if not parsed.dry_run:
            address = upload(staging, repository, repo_type="model", message=parsed.message, delete_patterns=REPLACED)
            print(f"Uploaded: {address}")


if __name__ == "__main__":
    main()
