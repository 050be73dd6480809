"""Loading a trained model and its image processor: whole and usable, or one line that says what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.initialization import no_init_weights
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from .errors import describe_error


SPARE_FACTOR = 8  # quantized weights hold several values in one number
SPARE_VALUES = 2**22


@contextmanager
def explain_failure(what: str) -> Iterator[None]:
    """Names the file in the error of whatever library could not use it."""
    try:
        yield
    except OSError:  # a file that is missing, which the message names
        raise
    except Exception as error:
        message = describe_error(error) or type(error).__name__
        raise ValueError(f"{what}: {message} Correct the file, or train or copy the model again.") from error


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
    check_regular_files(source)
    with explain_failure(f"Cannot use config.json of {source}"):
        config = model_class.config_class.from_pretrained(source, local_files_only=local_files_only)
        if config.model_type != model_class.config_class.model_type:
            raise ValueError(f"the model type is {config.model_type!r}, not {model_class.config_class.model_type!r}.")
        config.return_dict = True
    with explain_failure(f"The weights in {source} cannot be read"):
        stored = count_stored(source, local_files_only)
    with explain_failure(f"Cannot build the model of config.json in {source}"):
        check_size(model_class, config, stored)
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
        ValueError: If its file cannot be used.
    """
    check_regular_files(source)
    with explain_failure(f"Cannot use preprocessor_config.json of {source}"):
        return processor_class.from_pretrained(source, local_files_only=local_files_only)


def check_regular_files(source: str | Path) -> None:
    """Checks that a folder holds files and folders only; reading a pipe or a device would never end.

    Raises:
        ValueError: If it holds anything else.
    """
    folder = Path(source)
    others = (
        [path.name for path in folder.iterdir() if not (path.is_file() or path.is_dir())] if folder.is_dir() else []
    )
    if others:
        raise ValueError(f"A model is a folder of regular files; {source} also has {sorted(others)[:3]}. Remove them.")


def count_stored(source: str | Path, local_files_only: bool) -> int:
    """Returns how many values the weights of a model hold, without reading them."""
    hub = {"local_files_only": local_files_only}
    path = cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    paths = [path]
    if path is None:
        index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **hub)
        paths, _ = get_checkpoint_shard_files(source, index, **hub)
    count = 0
    for shard in paths:
        with safe_open(shard, framework="pt") as file:
            names = file.keys()
            count += sum(prod(file.get_slice(name).get_shape()) for name in names)
    return count


def check_size(model_class: type[PreTrainedModel], config: PreTrainedConfig, stored: int) -> None:
    """Checks that a model is not far larger than its weights, before memory is taken for it.

    Raises:
        ValueError: If it is.
    """
    with torch.device("meta"), no_init_weights():
        needed = sum(tensor.numel() for tensor in model_class(config).state_dict().values())
    if needed > SPARE_FACTOR * stored + SPARE_VALUES:
        raise ValueError(f"it has {needed} values, but the weights hold {stored}.")
