"""The backbone of SEM: building it, inspecting it, and loading pretrained weights into it."""

from fractions import Fraction
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import IMAGE_PROCESSOR_NAME

from .backbone_timm import SEMTimmBackbone
from .configuration_sem import BUILD_ERRORS, SEMTimmBackboneConfig
from .layers import SEMPatchConv2d


PROBE_SIZE = (224, 224)  # a multiple of the patch sizes 14 and 16 and of the stride 32
# By configuration, because running an encoder takes longer than building a model
KNOWN_IMAGE_SIZES: dict[str, tuple] = {}  # as `find_image_sizes` returns them
KNOWN_PROPERTIES: dict[tuple, tuple] = {}  # of encoders of transformers, as `inspect_backbone` returns them


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds the backbone that `config` describes, with random weights."""
    # Compared by name: the configuration and the model of a checkpoint with custom code may hold two copies of one class
    if config.model_type == SEMTimmBackboneConfig.model_type:
        return use_linear_layers(SEMTimmBackbone(config))
    try:
        return AutoBackbone.from_config(config)
    except BUILD_ERRORS as error:
        raise ValueError(
            f"transformers cannot build the {config.model_type} encoder of `backbone_config`: {type(error).__name__} {error}. "
            "Correct the fields that this names."
        ) from error


def use_linear_layers(backbone: SEMTimmBackbone) -> SEMTimmBackbone:
    """Makes the 1x1 convolutions of a timm encoder linear layers, whose training step is faster on a CPU."""
    for module in backbone.modules():
        is_pointwise = type(module) is nn.Conv2d and module.kernel_size == module.stride == (1, 1)
        if is_pointwise and module.groups == 1 and module.padding == (0, 0):
            module.__class__ = SEMPatchConv2d
    return backbone


def inspect_backbone(backbone: PreTrainedModel, num_maps: int) -> tuple[list[Fraction], list[str]]:
    """Returns properties of a backbone that `BackboneMixin` does not expose.

    A backbone of transformers is run once per configuration on the meta device, where tensors have shapes but no values.

    Args:
        backbone (`PreTrainedModel`): The backbone.
        num_maps (`int`): Number of feature maps that are used, counted from the deepest.

    Returns:
        `tuple[list[Fraction], list[str]]`: the stride of each feature map, and the names of the parameters that the
        feature maps in use do not depend on.
    """
    if isinstance(backbone, SEMTimmBackbone):  # it knows its strides, and timm builds only what the maps need
        return [Fraction(stride) for stride in backbone.strides], []
    key = backbone.config.to_json_string(use_diff=False), num_maps
    if key not in KNOWN_PROPERTIES:
        KNOWN_PROPERTIES[key] = _run_without_values(backbone.config, num_maps)
    strides, unused = KNOWN_PROPERTIES[key]
    return list(strides), list(unused)


def _run_without_values(config: PreTrainedConfig, num_maps: int) -> tuple[list[Fraction], list[str]]:
    with torch.device("meta"), torch.enable_grad():
        twin = build_backbone(config).requires_grad_(True)
        size, feature_maps = first_feature_maps(twin, [PROBE_SIZE, own_image_size(config)])
        names, parameters = zip(*twin.named_parameters(), strict=True)
        output = sum(feature_map.float().sum() for feature_map in feature_maps[-num_maps:])
        gradients = torch.autograd.grad(output, parameters, allow_unused=True)
    strides = [Fraction(round(size[-1] / feature_map.shape[-1])) for feature_map in feature_maps]
    return strides, [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


def own_image_size(config: PreTrainedConfig) -> tuple[int, int]:
    """Returns the height and width of the images that an encoder is built for; most take others as well."""
    if config.model_type == SEMTimmBackboneConfig.model_type:
        known = timm.get_pretrained_cfg(config.model_name)
        size = config.model_kwargs.get("img_size") or (known.input_size[1:] if known else PROBE_SIZE)
    else:
        size = getattr(config, "image_size", None) or PROBE_SIZE
    return (size, size) if isinstance(size, int) else tuple(size)


def first_feature_maps(
    backbone: PreTrainedModel, sizes: list[tuple[int, int]], strides: list[Fraction] | None = None
) -> tuple[tuple[int, int], tuple[Tensor, ...]]:
    """Runs a backbone on images of several sizes, until one works.

    Args:
        backbone (`PreTrainedModel`): The backbone.
        sizes (`list[tuple[int, int]]`): Heights and widths to try.
        strides (`list[Fraction]`, *optional*): Strides that the maps must have.

    Returns:
        `tuple[tuple[int, int], tuple[Tensor, ...]]`: the first size that works, and its feature maps.

    Raises:
        ValueError: If none works.
    """
    reasons = []
    for size in dict.fromkeys(sizes):
        try:
            feature_maps = backbone(torch.empty(1, backbone.config.num_channels, *size)).feature_maps
            channels, shapes = zip(*((len(one[0]), tuple(one.shape[2:])) for one in feature_maps), strict=True)
        except Exception as error:  # encoders raise many types, some with the stack of C++ in further lines
            reason = str(error).split("\n")[0]
            reasons.append(f"{size[0]} x {size[1]}: {type(error).__name__} {reason}")
            continue
        if strides is None:
            fits = all(len(shape) == 2 for shape in shapes)
        else:
            fits = list(shapes) == [tuple(edge / stride for edge in size) for stride in strides]
        if fits and list(channels) == list(backbone.channels):
            return size, feature_maps
        reasons.append(
            f"{size[0]} x {size[1]}: maps of {list(shapes)} with {list(channels)} channels; its `channels` are {list(backbone.channels)}"
        )
    name = getattr(backbone.config, "model_name", backbone.config.model_type)
    expected = "their strides" if strides is None else f"their strides {', '.join(map(str, strides))}"
    raise ValueError(
        f"The encoder {name!r} gives no feature maps of the size of the image over {expected} and with its `channels` "
        f"({'; '.join(reasons)}). "
        "docs/write_a_backbone.md lists encoders that do; some of timm are built for one size, "
        "model_kwargs={'img_size': [height, width]}."
    )


def find_image_sizes(backbone: PreTrainedModel, strides: list[Fraction]) -> tuple[int, tuple[int, int] | None]:
    """Finds out which images a backbone takes.

    A copy of it is run once for each configuration, on the meta device where possible.

    Args:
        backbone (`PreTrainedModel`): The backbone.
        strides (`list[Fraction]`): Strides of its feature maps.

    Returns:
        `tuple[int, tuple[int, int] | None]`: a number that height and width must be multiples of, and the only height and
        width that it takes, `None` if it takes all multiples.

    Raises:
        ValueError: If there is no image size for which the maps have the size of the image divided by their strides.
    """
    key = backbone.config.to_json_string(use_diff=False)
    if key not in KNOWN_IMAGE_SIZES:
        KNOWN_IMAGE_SIZES[key] = _probe_image_sizes(backbone.config, strides)
    return KNOWN_IMAGE_SIZES[key]


def _probe_image_sizes(config: PreTrainedConfig, strides: list[Fraction]) -> tuple[int, tuple[int, int] | None]:
    own_size = own_image_size(config)
    stride = int(max(strides))
    # HRNet has a stage that is deeper than those it returns. Attention windows are often a fixed share of a square image, and fit into
    # multiples of it
    divisors = [stride, 2 * stride, *(own_size[:1] if own_size[0] == own_size[1] else ())]
    sizes = [(3 * divisor, 5 * divisor) for divisor in divisors]  # windows of 7, 8 or 12 cells do not fit into 3 x 5
    try:
        size = _first_size(config, [*sizes, own_size], strides, "meta")
    except ValueError as error:
        if "meta" not in str(error).lower():  # which all errors of torch name where an encoder reads values
            raise
        size = _first_size(config, [sizes[0], own_size], strides, "cpu")
    return (divisors[sizes.index(size)], None) if size in sizes else (divisors[0], own_size)


def _first_size(
    config: PreTrainedConfig, sizes: list[tuple[int, int]], strides: list[Fraction], device: str
) -> tuple[int, int]:
    with torch.device(device), torch.no_grad(), torch.random.fork_rng(devices=[]):
        return first_feature_maps(build_backbone(config).eval(), sizes, strides)[0]


def parameters_to_buffers(module: nn.Module, names: list[str]) -> None:
    """Turns the named parameters into buffers, which are saved and loaded under the same names but not trained.

    Distributed training waits for a gradient of every trainable parameter. `requires_grad_(False)` is not enough:
    `from_pretrained` replaces each parameter by a trainable one.
    """
    for name in names:
        owner_name, _, leaf_name = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        parameter = owner.get_parameter(leaf_name)
        delattr(owner, leaf_name)
        owner.register_buffer(leaf_name, parameter.detach())


def load_backbone_weights(backbone: PreTrainedModel, source: str | None) -> str:
    """Loads pretrained weights into a backbone; see [`SEMPreTrainedModel.from_pretrained_backbone`].

    Returns:
        `str`: which weights were loaded, as text for the log.
    """
    if isinstance(backbone, SEMTimmBackbone):
        place = backbone.load_timm_weights(source)
        return f"all {len(backbone.state_dict())} tensors of {backbone.config.model_name!r} from {place}"
    source = source or backbone.config.name_or_path
    if not source:
        raise ValueError(
            "`backbone_config` does not name its pretrained weights. Give `source`, a folder or Hub name, or build the "
            "configuration by AutoConfig.from_pretrained(...)."
        )
    try:
        pretrained, info = type(backbone).from_pretrained(source, config=backbone.config, output_loading_info=True)
    except Exception as error:
        raise OSError(
            f"Could not load pretrained weights of a {backbone.config.model_type} encoder from {source!r}: {error}"
        ) from error
    missing, names = set(info["missing_keys"]), set(backbone.state_dict())
    if missing >= {name for name, _ in backbone.named_parameters()}:
        raise OSError(
            f"{source!r} holds no weight of a {backbone.config.model_type} encoder; expected {len(names)} tensors."
        )
    backbone.load_state_dict(pretrained.state_dict())
    new = f"; newly initialized: {sorted(missing)}" if missing else ""
    return f"{len(names - missing)} of {len(names)} tensors from {source!r}{new}"


def pretraining_normalization(config: PreTrainedConfig, source: str | None = None) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation that the pixels of an encoder were normalized with in its pretraining.

    Args:
        config (`PreTrainedConfig`): Configuration of the encoder.
        source (`str`, *optional*): Folder or Hub name of the weights of a transformers encoder; `None` is the place that its
            configuration was loaded from.

    Returns:
        `tuple[list[float], list[float]]`: the values of timm, or of the image processor beside the weights in `source`;
        ImageNet's where neither is known.
    """
    if config.model_type == SEMTimmBackboneConfig.model_type:
        known, names = timm.get_pretrained_cfg(config.model_name), ("mean", "std")
    else:
        known, names = find_image_processor(source or config.name_or_path), ("image_mean", "image_std")
    mean, std = (getattr(known, name, None) for name in names)
    return list(mean or IMAGENET_DEFAULT_MEAN), list(std or IMAGENET_DEFAULT_STD)


def find_image_processor(source: str | None) -> BaseImageProcessor | None:
    """Returns the image processor in a folder or repository of the Hub, or `None` if there is none that transformers knows.

    Raises:
        ValueError: If its file is damaged.
    """
    try:
        return AutoImageProcessor.from_pretrained(source) if source else None
    except ValueError:
        return None
    except Exception as error:  # transformers does not check what the file holds
        if isinstance(error, OSError) and not Path(source, IMAGE_PROCESSOR_NAME).is_file():
            return None
        raise ValueError(
            f"Cannot use {IMAGE_PROCESSOR_NAME} of {source}: {type(error).__name__} {error}. Correct the file or remove it."
        ) from error
