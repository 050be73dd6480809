"""Backbone that wraps any timm encoder."""

import timm
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from .configuration_sem import SEMTimmBackboneConfig


# Keyword arguments of `timm.create_model` that make the encoders of a timm module accept any input size
ANY_SIZE_KWARGS = {
    "vision_transformer": {"dynamic_img_size": True},
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "swin_transformer_v2_cr": {"strict_img_size": False},
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
    except AssertionError as error:
        if "feature index" not in str(error):
            raise
        raise ValueError(
            f"`out_indices` count the stages of {config.model_name!r} from 1; got {config.out_indices}, but it has fewer "
            f"than {max(config.out_indices)} stages. Use smaller indices."
        ) from error


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

    def load_timm_weights(self, file: str | None = None) -> None:
        """Loads timm's pretrained weights of this encoder from the cache or the Hub, or from a `file` in timm's format.

        Raises:
            OSError: If the weights cannot be loaded.
        """
        overlay = {"file": file} if file else None
        try:
            if file:
                self._check_names(timm.models.load_state_dict(file))
            pretrained = build_timm_encoder(self.config, pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception as error:
            raise OSError(
                f"Could not load pretrained weights of {self.config.model_name!r} from {file or 'the Hub'}: {error}. Give "
                "the path of a file, or start from random weights with pretrained_backbone=false."
            ) from error
        self.encoder.load_state_dict(pretrained.state_dict())

    def _check_names(self, state_dict: dict[str, Tensor]) -> None:
        """Raises `ValueError` if the file lacks tensors of the encoder, which timm would leave at random values."""
        missing = sorted(set(self.encoder.model.state_dict()) - set(state_dict))
        if missing:
            raise ValueError(f"the file lacks {len(missing)} tensors of this encoder, among them {missing[:3]}")

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput:
        """Encodes `pixel_values` of shape `(batch_size, num_channels, height, width)`.

        Height and width must be multiples of the largest stride; [`SEMModel`] pads the images.
        """
        self.encoder.model.set_grad_checkpointing(self.gradient_checkpointing and self.training)
        feature_maps = tuple(self.encoder(pixel_values))
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=feature_maps if output_hidden_states else None, attentions=None
        )


__all__ = ["SEMTimmBackbone"]
