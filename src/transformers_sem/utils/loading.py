"""Loading a trained model and its image processor: whole and usable, or one line that says what is wrong."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from .errors import describe_error


@contextmanager
def explain_failure(what: str) -> Iterator[None]:
    """Names the file in the error of whatever library could not use it."""
    try:
        yield
    except OSError:  # a file that is missing, which the message names
        raise
    except Exception as error:
        message = describe_error(error) or type(error).__name__
        raise ValueError(
            f"{what}: {message.rstrip('.')}. Correct the file, or train or copy the model again."
        ) from error


def load_config(
    config_class: type[PreTrainedConfig], source: str | Path, *, local_files_only: bool = False
) -> PreTrainedConfig:
    """Loads the configuration of a trained model.

    Raises:
        OSError: If there is none.
        ValueError: If its file cannot be used, is that of another kind of model, or the weights are no safetensors.
    """
    check_regular_files(source)
    check_index(source)
    with explain_failure(f"Cannot use config.json of {source}"):
        values, kwargs = config_class.get_config_dict(source, local_files_only=local_files_only)
        if values == {}:  # transformers would build the default
            raise FileNotFoundError(f"There is no config.json in {source}, or it has no fields. Name a trained model.")
        if values.get("model_type") != config_class.model_type:
            raise ValueError(f"the model type is {values.get('model_type')!r}, not {config_class.model_type!r}.")
        return config_class.from_dict(values, **kwargs)


def load_model(
    model_class: type[PreTrainedModel],
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = False,
) -> PreTrainedModel:
    """Loads a trained model, in evaluation mode.

    Args:
        model_class (`type[PreTrainedModel]`): Its class.
        source (`str` or `Path`): Folder or Hub name.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Precision of its weights, whatever that of the file.
        local_files_only (`bool`, *optional*, defaults to `False`): Whether to look for no file on the Hub.

    Raises:
        OSError: If there is no such model, or it has no weights in safetensors.
        ValueError: If a file cannot be used, or tensors are missing, unexpected or of another shape.
    """
    config = load_config(model_class.config_class, source, local_files_only=local_files_only)
    with explain_failure(f"The weights in {source} cannot be read"):
        model, report = model_class.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            local_files_only=local_files_only,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, in one line
            output_loading_info=True,
        )
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"The weights in {source} do not match its config.json: {name} must have the shape {tuple(expected)}; it has "
            f"{tuple(found)}. Train or copy them again."
        )
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise ValueError(
            f"The weights in {source} do not match its config.json: {len(wrong)} tensors are missing or unexpected, such as "
            f"{wrong[:3]}. Train or copy them again."
        )
    return model


def load_image_processor(
    processor_class: type[ImageProcessingMixin], source: str | Path, *, local_files_only: bool = False
) -> ImageProcessingMixin:
    """Loads the image processor of a trained model.

    Raises:
        OSError: If there is none.
        ValueError: If its file cannot be used, or no image can be processed with its values.
    """
    check_regular_files(source)
    with explain_failure(f"Cannot use preprocessor_config.json of {source}"):
        processor = processor_class.from_pretrained(source, local_files_only=local_files_only)
        # otherwise the user's first image fails, and no message names the file
        processor(Image.new("RGB", (2, 2)), return_tensors="pt")
    return processor


def check_index(source: str | Path) -> None:
    """Checks that the index of weights in several files names safetensors in its folder; transformers also loads pickles.

    Raises:
        ValueError: If it names anything else.
    """
    path = Path(source) / SAFE_WEIGHTS_INDEX_NAME
    if not os.path.isfile(path):
        return
    with explain_failure(f"Cannot use {path}"):
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        others = sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors"))
        if others:
            raise ValueError(f"weights are safetensors in the same folder; it names {others[:3]}.")


def check_regular_files(source: str | Path) -> None:
    """Checks that a folder holds files and folders only; reading a pipe or a device would never end.

    Raises:
        ValueError: If it holds anything else.
    """
    folder = Path(source)
    others = (
        [path.name for path in folder.iterdir() if not (os.path.isfile(path) or os.path.isdir(path))]
        if folder.is_dir()
        else []
    )
    if others:
        raise ValueError(f"A model is a folder of regular files; {source} also has {sorted(others)[:3]}. Remove them.")
