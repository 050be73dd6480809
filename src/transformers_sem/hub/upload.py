"""Upload to the Hub: the files of a trained model, and one commit that holds all of them or none.

The token is the one that `huggingface_hub` finds: `HF_TOKEN`, or the file that `hf auth login` writes.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from ..configuration_sem import SEMConfig
from ..evaluation.config import REPORT_NAME, TRAINING_NAME, read_training
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import AUTO_MODELS, SEMForMultiTaskDensePrediction
from ..pipeline_sem import MultiTaskDensePredictionPipeline
from ..utils.files import plain_disk_errors
from ..utils.loading import load_image_processor, load_model
from .card import SEVERAL_EVALUATIONS, card_of_folder, find_reports, predictions_path


LOG_IN = "Log in with `hf auth login` or set HF_TOKEN, with a token that may write there"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Files of these names that an upload does not bring belong to an earlier version, and are deleted by the same commit.
REPLACED = [
    *sorted(path.name for path in Path(__file__).parents[1].glob("[!_]*.py")),  # of `--custom-code`
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    TRAINING_NAME,
    REPORT_NAME,
    SEVERAL_EVALUATIONS,
    "predictions.png",
    "predictions_*.png",
]


# ----------------------------------------------------------------------------------------------------------------------
# The files of a model


def stage_model(folder: Path, staging: Path, *, custom_code: bool = False) -> None:
    """Writes all files of an upload but the card to an empty folder.

    The model is loaded and saved again, so that what is uploaded is known to load.

    Args:
        folder (`Path`): A trained model with its image processor, as `transformers-sem train` writes it.
        staging (`Path`): Empty folder to write to.
        custom_code (`bool`): Whether to add the code, so that the model loads without this package and with
            `trust_remote_code=True`.

    Raises:
        OSError: If there is no model, a part of it is missing, or the disk is full.
        ValueError: If it is another model, or its weights are incomplete or a pickle.
    """
    check_files(folder)
    model = load_model(SEMForMultiTaskDensePrediction, folder, local_files_only=True)
    image_processor = load_image_processor(SEMImageProcessor, folder, local_files_only=True)
    reports = find_reports(folder)
    read_training(folder)  # fails where the file is damaged
    card_of_folder(folder, folder.name, model_id=str(folder))  # fails now, and not after the repository is created
    with plain_disk_errors(staging):
        if custom_code:
            save_with_code(model, image_processor, staging)
        else:
            for owner in (model.config, image_processor):  # the weights may come from a repository with code
                vars(owner).pop("auto_map", None)
                vars(owner).pop("custom_pipelines", None)
            model.save_pretrained(staging)
            image_processor.save_pretrained(staging)
        for path in (*reports, *map(predictions_path, reports), folder / TRAINING_NAME):
            if path.is_file():
                shutil.copyfile(path, staging / path.name)


def write_card(staging: Path, repository: str) -> None:
    """Writes the card of a staged model that is to be loaded from `repository`."""
    card_of_folder(staging, repository.split("/")[-1], model_id=repository).save(staging / "README.md")


def file_sizes(staging: Path) -> dict[str, int]:
    """Returns `{name: bytes}` of the staged files."""
    return {path.name: path.stat().st_size for path in sorted(staging.iterdir())}


def check_files(folder: Path) -> None:
    """Checks that a folder holds a trained SEM, before anything of it is loaded.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is not what it should be.
    """
    remedy = "Pass a folder that `transformers-sem train` or `save_pretrained` has written"
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}. {remedy}.")
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a trained model: it has no {name}. {remedy}.")
    if not list(folder.glob("*.safetensors")):
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
        found = f"its weights are pickles, {pickles}, which can run code" if pickles else "it has no weights"
        raise ValueError(f"Weights must be safetensors, and {folder} has none: {found}. {remedy}.")


def save_with_code(model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, staging: Path) -> None:
    """Saves a pipeline and the code that it needs."""
    with auto_classes_registered():
        MultiTaskDensePredictionPipeline(model=model, image_processor=image_processor).save_pretrained(staging)
    path = staging / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers notes only the class that was saved; the other classes load the same weights
    for auto_class, model_class in AUTO_MODELS.items():
        config["auto_map"][auto_class] = f"{model_class.__module__.split('.')[-1]}.{model_class.__name__}"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def auto_classes_registered() -> Iterator[None]:
    """Context in which `save_pretrained` of our classes also saves their code."""
    auto_classes = {
        SEMConfig: "AutoConfig",
        SEMForMultiTaskDensePrediction: "AutoModelForUniversalSegmentation",
        SEMImageProcessor: "AutoImageProcessor",
    }
    before = {cls: cls._auto_class for cls in auto_classes}
    try:
        for cls, auto_class in auto_classes.items():
            cls.register_for_auto_class(auto_class)
        yield
    finally:
        for cls, auto_class in before.items():
            cls._auto_class = auto_class


# ----------------------------------------------------------------------------------------------------------------------
# The Hub


def create_repository(name: str, *, repo_type: str, private: bool) -> str:
    """Creates a repository unless it exists; returns its full name.

    Args:
        name (`str`): "USER/NAME", or NAME for the user who is logged in.
        repo_type (`str`): "model" or "dataset".
        private (`bool`): Whether the repository must be private; otherwise the default of the account holds.

    Raises:
        ValueError: If the name is not one that the Hub allows.
        OSError: If no user is logged in, the Hub refuses or cannot be reached, or a repository that must be private exists and
            is public.
    """
    validate_repo_id(name)
    if get_token() is None:
        raise OSError(f"No user is logged in to the Hub, so nothing is uploaded to {name}. {LOG_IN}.")
    api = HfApi()
    try:
        repository = api.create_repo(name, repo_type=repo_type, private=private or None, exist_ok=True).repo_id
        is_public = private and not api.repo_info(repository, repo_type=repo_type).private
    except Exception as error:  # the client also raises the errors of its HTTP library
        raise OSError(f"The Hub did not create {name}: {explain(error)}") from error
    if is_public:
        raise OSError(
            f"{repository} must be private, but it exists and is public. Make it private in its settings, or choose another "
            "name."
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
        folder (`Path`): The files.
        repository (`str`): Its full name.
        repo_type (`str`): "model" or "dataset".
        message (`str`, *optional*): Message of the commit.
        delete_patterns (`list[str]`, *optional*): Files of the repository to delete with the same commit, unless the folder
            has them.

    Raises:
        OSError: If the Hub refuses or cannot be reached; the repository is then unchanged.
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
            f"The upload to {repository} failed, and the repository is unchanged: {explain(error)} Files that have arrived are "
            "not sent again."
        ) from error


def explain(error: Exception) -> str:
    """Returns the message of a client's error in one line, and the remedy."""
    response = getattr(error, "response", None)  # errors of the connection have none
    is_refused = response is not None and response.status_code in (401, 403)
    remedy = f"{LOG_IN}, and run the same command again." if is_refused else "Run the same command again."
    return f"{' '.join(str(error).split()).rstrip('.')}. {remedy}"
