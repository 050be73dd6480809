"""Compute the boundary F-measure (odsF) of predicted images on disk, without MATLAB.

    transformers-sem evaluate-boundaries --predictions FOLDER --labels NYUDv2/edge --max-distance 0.011
    transformers-sem evaluate-boundaries --predictions FOLDER --labels PASCALContext/pascal-context/trainval \
        --max-distance 0.0075 --ids pascal_context

Predictions are 8-bit gray images, from any program. Labels are label maps: images of ids, or PASCAL-Context's .mat files with
`LabelMap`. A thin edge map is read as a label map, as the field does on NYUD-v2. Files are paired by name. The counts of
finished images are kept beside the output, so the same command resumes where it was interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..data.benchmarks import SCORED_BOUNDARY_IDS
from ..data.files import read_list
from ..evaluation.boundary import boundary_scores
from ..evaluation.boundary_files import count_boundaries, pair_files
from ..utils.environment import lock_report, save_report
from ..utils.errors import plain_errors
from ..utils.processes import available_cpus
from .arguments import command_parser, json_path, positive_integer


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    parser = command_parser("evaluate-boundaries", __doc__)
    parser.add_argument("--predictions", required=True, type=Path, help="folder of 8-bit gray images")
    parser.add_argument("--labels", required=True, type=Path, help="folder of label maps")
    parser.add_argument(
        "--max-distance", required=True, type=float, help="tolerance: 0.011 for NYUD-v2, 0.0075 for PASCAL-Context"
    )
    parser.add_argument(
        "--ids",
        help="file of the names to evaluate, one per line, or pascal_context for the 2,498 of the field's protocol (default: all)",
    )
    parser.add_argument("--processes", type=positive_integer, default=available_cpus(), help="default: all cores")
    parser.add_argument("--output", type=json_path, default=Path("boundaries.json"), help="JSON file to write")
    return parser


def read_ids(source: str | None) -> list[str] | None:
    """Returns the names of PASCAL-Context's protocol or of a file with one name per line; `None` stands for all images."""
    if source is None:
        return None
    return sorted(SCORED_BOUNDARY_IDS) if source == "pascal_context" else read_list(Path(source))


def main(arguments: Sequence[str] | None = None) -> None:
    """Pairs the files, counts, and writes the scores."""
    parsed = build_parser().parse_args(arguments)
    with plain_errors():
        pairs = pair_files(parsed.predictions, parsed.labels, read_ids(parsed.ids))
        counts_path = parsed.output.with_name(f"{parsed.output.stem}_counts")
        with lock_report(parsed.output):
            counts = count_boundaries(pairs, parsed.max_distance, counts_path, parsed.processes)
            scores = boundary_scores(list(counts.values()))
            save_report(parsed.output, scores=scores, num_images=len(counts), max_distance=parsed.max_distance)
    for name, value in scores.items():
        print(f"{name:15}{value:.4f}")
    print(f"{len(counts)} images. Written: {parsed.output}, and the counts of each image in {counts_path}.")


if __name__ == "__main__":
    main()
