"""Send a trained model to the Hub: weights, image processor, pipeline, card, scores and pictures, in one commit.

    python scripts/push_to_hub.py --model runs/quickstart --repo-id USER/NAME [--private] [--custom-code] [--dry-run]

Makes the repository, or updates it. The card is rendered from config.json and evaluation.json. With --custom-code the
repository also has the code, so that people need no package but trust_remote_code=True. --dry-run lists what would be sent,
and sends nothing. The token is that of `hf auth login`, or HF_TOKEN.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers_sem.hub.staging import REPLACED, file_sizes, stage_model, write_card
from transformers_sem.hub.upload import create_repository, upload
from transformers_sem.utils.errors import plain_errors


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that scripts/train.py wrote")
    parser.add_argument("--repo-id", required=True, metavar="USER/NAME", help="repository to make or to update")
    parser.add_argument("--private", action="store_true", help="for you alone (default: as your account has it)")
    parser.add_argument("--custom-code", action="store_true", help="send the code, too")
    parser.add_argument("--message", default="Upload model, card and scores", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, send nothing")
    return parser.parse_args()


def main() -> None:
    """Check, lay out, send."""
    arguments = parse_arguments()
    with plain_errors(), TemporaryDirectory() as temporary:
        staging = Path(temporary)
        stage_model(arguments.model, staging, custom_code=arguments.custom_code)
        repository = arguments.repo_id
        if not arguments.dry_run:
            repository = create_repository(repository, repo_type="model", private=arguments.private)
        write_card(staging, repository)
        sizes = file_sizes(staging)
        for name, size in sizes.items():
            print(f"{size:>14,}  {name}")
        print(f"{sum(sizes.values()):>14,}  bytes in {len(sizes)} files, for {repository}")
        if not arguments.dry_run:
            address = upload(
                staging, repository, repo_type="model", message=arguments.message, delete_patterns=REPLACED
            )
            print(f"Uploaded: {address}")


if __name__ == "__main__":
    main()
