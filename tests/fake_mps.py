"""A stand-in for the MPS device of torch 2.8 to 2.12: it runs on the CPU and refuses what MPS refuses."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


MPS = torch.device("mps")


class MPSTensor(Tensor):
    """A tensor whose device is called mps. Results are of the same class, except for those of `cpu`."""

    device = MPS


class FakeMPS(TorchFunctionMode):
    """Within this context float64 and border padding are errors on the device, and tensors of two devices do not mix."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        on_device = [isinstance(tensor, MPSTensor) for tensor in tensors]
        if name == "to" and MPS in args:
            return to_mps(args[0])
        if kwargs.get("device") == MPS:  # a new tensor
            return to_mps(function(*args, **{**kwargs, "device": None}))
        if name in ("cpu", "__get__", "__set__", "__repr__") or not any(on_device):
            return to_plain(function(*args, **kwargs)) if name == "cpu" else function(*args, **kwargs)
        if not all(on_device[index] or not tensor.ndim for index, tensor in enumerate(tensors)):
            raise RuntimeError(f"{name}: tensors on two devices")
        if name == "grid_sample" and kwargs.get("padding_mode") == "border":
            raise NotImplementedError("grid_sampler_2d with border padding")
        return tree_map(lambda value: to_mps(value) if isinstance(value, Tensor) else value, function(*args, **kwargs))


def to_mps(values: Tensor) -> MPSTensor:
    """Moves a tensor to the device."""
    if values.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    return values.as_subclass(MPSTensor)


def to_plain(values: Tensor) -> Tensor:
    """Moves a tensor back."""
    return values.as_subclass(Tensor)
