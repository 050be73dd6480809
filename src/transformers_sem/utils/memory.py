"""Peak memory of this process."""

import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Returns the largest number of bytes that this process has held on a GPU, or in main memory for a CPU device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil  # which accelerate requires

        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
