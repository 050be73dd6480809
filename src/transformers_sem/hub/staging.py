"""A trained model as a repository of the Hub: which files it has, and that they are what they should be."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..configuration_sem import SEMConfig
from ..image_processing_sem import SEMImageProcessor
from ..modeling_sem import SEMForMultiTaskDensePrediction, SEMModel
from ..pipeline_sem import MultiTaskDensePredictionPipeline
from .card import EVALUATION_NAME, PICTURE_NAME, card_of_folder, read_evaluation


PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# what an upload replaces: files of these names that it does not bring are of an earlier one
REPLACED = ["*.py", "*.safetensors", "*.safetensors.index.json", EVALUATION_NAME, PICTURE_NAME]


def stage_model(folder: Path, staging: Path, *, custom_code: bool = False) -> None:
    """Lays out in an empty folder what is to be sent, all but the card.

    The model is loaded and saved again, so what is sent is known to load.

    Args:
        folder (`Path`): A trained model with its image processor, as `scripts/train.py` leaves it.
        staging (`Path`): Where to.
        custom_code (`bool`): Whether people shall be able to load it without this package, with `trust_remote_code=True`.

    Raises:
        OSError: If there is no model, or a part of it is missing.
        ValueError: If it is another model, or its weights are incomplete or a pickle.
    """
    check_files(folder)
    model = load_model(folder)
    image_processor = SEMImageProcessor.from_pretrained(folder, local_files_only=True)
    if (folder / EVALUATION_NAME).is_file():
        read_evaluation(folder / EVALUATION_NAME)
    if custom_code:
        save_with_code(model, image_processor, staging)
    else:
        model.save_pretrained(staging)
        image_processor.save_pretrained(staging)
    for name in (EVALUATION_NAME, PICTURE_NAME):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, staging / name)


def write_card(staging: Path, repository: str) -> None:
    """Writes the card of a staged model, for people who load it from `repository`."""
    card_of_folder(staging, repository.split("/")[-1], model_id=repository).save(staging / "README.md")


def file_sizes(staging: Path) -> dict[str, int]:
    """`{name: bytes}` of what is to be sent."""
    return {path.name: path.stat().st_size for path in sorted(staging.iterdir())}


def check_files(folder: Path) -> None:
    """Refuses what is no trained model of ours, before anything of it is loaded.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is not what it should be.
    """
    remedy = "Pass a folder that scripts/train.py or save_pretrained has written"
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}. {remedy}.")
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no trained model: it has no {name}. {remedy}.")
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} is no configuration: {error}. {remedy}.") from error
    if model_type != SEMConfig.model_type:
        raise ValueError(f"A model of type {SEMConfig.model_type!r} is sent; {folder} holds {model_type!r}. {remedy}.")
    if not list(folder.glob("*.safetensors")):
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
        found = f"its weights are pickles, {pickles}, which can run code" if pickles else "it has no weights"
        raise ValueError(f"Weights are sent as safetensors, and {folder} has none: {found}. {remedy}.")


def load_model(folder: Path) -> SEMForMultiTaskDensePrediction:
    """Loads a model whose weights are all there.

    Raises:
        ValueError: If they are not.
    """
    try:
        model, report = SEMForMultiTaskDensePrediction.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"The weights in {folder} cannot be read: {error}. Train or copy them again.") from error
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise ValueError(
            f"The weights in {folder} are not those of its config.json: {len(wrong)} tensors are missing or left over, such as "
            f"{wrong[:3]}. Train or copy them again."
        )
    return model


def save_with_code(model: SEMForMultiTaskDensePrediction, image_processor: SEMImageProcessor, staging: Path) -> None:
    """Saves a pipeline and all the code that it needs."""
    with carrying_code():
        MultiTaskDensePredictionPipeline(model=model, image_processor=image_processor).save_pretrained(staging)
    path = staging / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers names the class that was saved, and the one below it can be loaded, too
    config["auto_map"]["AutoModel"] = f"{SEMModel.__module__.split('.')[-1]}.{SEMModel.__name__}"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def carrying_code() -> Iterator[None]:
    """Inside, what is saved carries its code."""
    auto_classes = {
        SEMConfig: "AutoConfig",
        SEMForMultiTaskDensePrediction: "AutoModelForSemanticSegmentation",
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
