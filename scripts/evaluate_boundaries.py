"""The boundary F-measure (odsF) of pictures on disk, whoever predicted them, without MATLAB.

    python scripts/evaluate_boundaries.py --predictions FOLDER --labels NYUDv2/edge --max-distance 0.011
    python scripts/evaluate_boundaries.py --predictions FOLDER --labels PASCALContext/pascal-context/trainval \
        --max-distance 0.0075 --ids pascal_context

Predictions are 8-bit grey pictures. Labels are label maps: pictures of ids (a thin edge map is read as one, as the field
does on NYUD-v2) or PASCAL-Context's .mat files with `LabelMap`. Files go together by their names. Counts of finished images
are kept beside the output, so that the same command continues where it was interrupted.
"""

import argparse
from pathlib import Path

from transformers_sem.data.benchmarks import SCORED_BOUNDARY_IDS
from transformers_sem.evaluation.boundary import boundary_scores
from transformers_sem.evaluation.boundary_files import count_boundaries, pair_files
from transformers_sem.utils.arguments import json_path, positive_integer
from transformers_sem.utils.environment import save_report
from transformers_sem.utils.errors import plain_errors
from transformers_sem.utils.processes import available_cpus


def read_ids(source: str | None) -> list[str] | None:
    """Names of images: those of PASCAL-Context's protocol, or of a file with one a line, or `None`, all."""
    if source is None:
        return None
    return sorted(SCORED_BOUNDARY_IDS) if source == "pascal_context" else Path(source).read_text().split()


def main() -> None:
    """Count, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", required=True, type=Path, help="folder of 8-bit grey pictures")
    parser.add_argument("--labels", required=True, type=Path, help="folder of label maps")
    parser.add_argument(
        "--max-distance", required=True, type=float, help="tolerance: 0.011 for NYUD-v2, 0.0075 for PASCAL-Context"
    )
    parser.add_argument(
        "--ids",
        help="file of the names to evaluate, or pascal_context for the 2,498 of the field's protocol (default: all)",
    )
    parser.add_argument("--processes", type=positive_integer, default=available_cpus(), help="default: all cores")
    parser.add_argument("--output", type=json_path, default=Path("boundaries.json"), help="JSON file to write")
    arguments = parser.parse_args()
    with plain_errors():
        pairs = pair_files(arguments.predictions, arguments.labels, read_ids(arguments.ids))
        counts_path = arguments.output.with_name(f"{arguments.output.stem}_counts")
        counts = count_boundaries(pairs, arguments.max_distance, counts_path, arguments.processes)
        scores = boundary_scores(list(counts.values()))
        save_report(arguments.output, scores=scores, num_images=len(counts), max_distance=arguments.max_distance)
    for name, value in scores.items():
        print(f"{name:15}{value:.4f}")
    print(f"{len(counts)} images. Written: {arguments.output}, and the counts of each image in {counts_path}.")


if __name__ == "__main__":
    main()
