"""Tables and curves of results, rendered into a page: what stands between two markers is replaced, the text around it is kept.

    <!-- results/nyud_v2_quarter -->
    ...
    <!-- end of results/nyud_v2_quarter -->

The name in the marker is a folder relative to the folder that has `docs`: with rows of an ablation, or with the files
`modes.jsonl` of `transformers-sem benchmark modes`, each in a folder of its own. Curves are images in `docs`.
"""

import json
import math
import os
import re
import statistics
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration_sem import SEMConfig
from ..evaluation.metrics import arrow
from ..evaluation.sums import main_scores, multi_task_gain
from ..hub.card import encoder_name
from ..utils.extras import require
from ..utils.files import write_text
from .figures import save_figure
from .results import check_shared_settings, load_row
from .tables import (
    MODELS,
    NOTHING,
    SINGLE_TASK,
    TABLE_2,
    describe_origins,
    format_cost,
    format_summary,
    format_table,
    summarize,
)


if TYPE_CHECKING:
    from matplotlib.figure import Figure


BASELINE = "baseline"
BIAS = "scale"  # a score that shows a bias: 1 without one
MARKERS = re.compile(r"<!-- (\S+) -->\n.*?<!-- end of \1 -->", re.DOTALL)
SHOWN = ("dataset", "max_steps", "batch_size", "learning_rate", "input_size", "network_size", "mixed_precision")
Rows = dict[tuple[str, int], dict[str, Any]]  # {(model, seed): row}


def render_page(page: Path, root: Path) -> list[Path]:
    """Renders all blocks of a page and returns the files that were written.

    Args:
        page (`Path`): Markdown file.
        root (`Path`): Folder that has `docs`; the names in the markers are relative to it.

    Raises:
        ValueError: If the page has no marker, or a folder has no results, or its rows have different settings.
    """
    text = page.read_text(encoding="utf-8")
    names = [match[1] for match in MARKERS.finditer(text)]
    if not names:
        raise ValueError(
            f"A page marks where results go, `<!-- FOLDER -->` and `<!-- end of FOLDER -->`; {page} does not."
        )
    written = [page]
    for name in names:
        speed_files = sorted((root / name).glob("*/modes.jsonl"))
        if speed_files:
            content = "\n\n".join(map(format_speed, speed_files))
        else:
            rows, figure = read_rows(root / name), root / "docs" / f"{name.replace('/', '_')}.png"
            save_figure(plot_validation(rows), figure)
            written.append(figure)
            link = Path(os.path.relpath(figure, page.parent)).as_posix()
            content = f"{format_block(rows)}\n\n![Validation scores over training]({link})"
        block = f"<!-- {name} -->\n{content}\n<!-- end of {name} -->"
        text = MARKERS.sub(lambda match, name=name, block=block: block if match[1] == name else match[0], text)
    write_text(page, text)
    return written


def read_times(path: Path) -> list[dict[str, Any]]:
    """Reads the modes that were timed; a device may lack others, and a run that was ended may have left a line incomplete."""
    entries = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            entries.append(json.loads(line))
    timed = [entry for entry in entries if "milliseconds" in entry]
    if not timed:
        raise ValueError(f"Times are written by `transformers-sem benchmark modes`; {path} has none. Run it again.")
    return timed


def format_speed(path: Path) -> str:
    """Formats the times of one encoder: a line for each pass and mode, a column for each model, and the ratios to SEM."""
    entries = read_times(path)
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    times: dict[tuple, dict[str, float]] = {}
    for entry in entries:
        times.setdefault((entry["pass"], entry["precision"], entry["mode"]), {})[entry["model"]] = entry[
            "milliseconds"
        ]
    lines = [
        [", ".join(key), *(f"{by_model[model]:.1f}" for model in models)]
        + [f"{by_model[models[0]] / by_model[model]:.1f}" for model in models[1:]]
        for key, by_model in sorted(times.items(), key=lambda item: item[0][0])
        if len(by_model) == len(models)  # the last mode may have been cut off
    ]
    header = ["", *(f"{model}, ms" for model in models), *(f"{models[0]} / {model}" for model in models[1:])]
    first = entries[0]
    caption = f"`{first['encoder']}`, batches of {first['batch_size']} at {' x '.join(map(str, first['input']))}"
    return f"{caption}, {first['environment']['hardware']}:\n\n{format_table(header, lines)}"


def read_rows(folder: Path) -> Rows:
    """Reads all rows of a folder. Those of single-task models of one seed are merged: they stand for one row of a table.

    Raises:
        ValueError: If there are none, or settings differ that all rows share.
    """
    found = {path: load_row(path) for path in sorted(folder.glob("seed*/*.json"))}
    if not found:
        raise ValueError(
            f"Rows are files such as {folder}/seed0/sem.json; there are none. Run `transformers-sem ablation`."
        )
    models = {path: path.stem.split("_")[0] for path in found}
    check_shared_settings(found, {path: MODELS.get(model, {}) for path, model in models.items()})
    rows = {}
    for path, row in found.items():
        model, seed = models[path], int(path.parent.name.removeprefix("seed"))
        merged = rows.setdefault(
            (model, seed), {**row, "scores": {}, "constant_scores": {}, "history": [], "files": {}}
        )
        merged["files"][f"{path.parent.name}/{path.stem}"] = row
        merged["scores"] |= row["scores"]
        merged["history"] += row["history"]
        merged["constant_scores"] |= row["constant_scores"]
    return rows


def shown_keys(rows: Rows) -> list[str]:
    """Returns the main scores of all tasks, in order, each followed by the score of its bias if it has one."""
    scores = max((row["scores"] for row in rows.values()), key=len)
    main = main_scores(scores)
    return [key for task, best in main.items() for key in (best, f"{task}/{BIAS}") if key in scores]


def models_of(rows: Rows) -> list[str]:
    """Returns the models that rows are of, in the order of the paper."""
    return [model for model in MODELS if any(found == model for found, _ in rows)]


def values_of(rows: Rows, model: str, key: str) -> dict[int, float]:
    """Returns a score of a model by seed."""
    return {seed: row["scores"][key] for (name, seed), row in rows.items() if name == model and key in row["scores"]}


def format_block(rows: Rows) -> str:
    """Formats the table of scores, the paired differences to the baseline, and the facts."""
    keys = shown_keys(rows)
    names = {model: name for name, model in TABLE_2.items()}
    models = models_of(rows)
    constant = {key: value for row in rows.values() for key, value in row["constant_scores"].items()}
    parts = [
        format_scores(rows, models, names, keys, constant),
        format_differences(rows, models, names, keys),
        format_facts(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def format_scores(
    rows: Rows, models: list[str], names: dict[str, str], keys: list[str], constant: dict[str, float]
) -> str:
    """Formats mean and standard deviation of every score, costs, and the constant predictor."""
    lines = [["constant predictor", "", *(f"{constant[key]:.4f}" for key in keys), NOTHING, NOTHING]]
    for model in models:
        row = next(row for (name, _), row in rows.items() if name == model)
        costs = (
            [NOTHING, NOTHING]
            if model == SINGLE_TASK
            else [format_cost(row["parameters_millions"]), format_cost(row["multiply_accumulates_billions"])]
        )
        summaries = [format_summary(summarize(values_of(rows, model, key)), 4) for key in keys]
        seeds = str(len({seed for name, seed in rows if name == model}))
        lines.append([names.get(model, model), seeds, *summaries, *costs])
    return format_table(["", "seeds", *map(name_column, keys), "M parameters", "GMAC"], lines)


def is_bias(key: str) -> bool:
    """Returns whether a score shows a bias, and is 1 without one."""
    return key.endswith(f"/{BIAS}")


def name_column(key: str) -> str:
    """Returns the name of a score, with an arrow to its better values."""
    return f"{key} {'→ 1' if is_bias(key) else arrow(key)}"


def format_differences(rows: Rows, models: list[str], names: dict[str, str], keys: list[str]) -> str:
    """Formats the mean difference to the baseline of the same seed, and its standard error; nothing without two seeds."""
    keys, lines = [key for key in keys if not is_bias(key)], []
    for model in models:
        pairs = paired_scores(rows, model, keys)
        if model != BASELINE and len(pairs) > 1:
            differences = [[scores[key] - base[key] for base, scores in pairs] for key in keys]
            gains = [multi_task_gain(scores, base) for base, scores in pairs]
            summaries = [*map(format_difference, differences), format_difference(gains, digits=2)]
            lines.append([f"{names.get(model, model)} − baseline", *summaries])
    if not lines:
        return ""
    title = (
        "Differences between trainings of one seed, mean ± standard error. Δm is the mean over the tasks of the relative gain over "
        "the baseline:\n\n"
    )
    return title + format_table(["", *map(name_column, keys), "Δm, % ↑"], lines)


def paired_scores(rows: Rows, model: str, keys: list[str]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Returns scores of the baseline and of a model, for each seed that has all of them."""
    pairs = [
        (rows[BASELINE, seed]["scores"], row["scores"])
        for (name, seed), row in rows.items()
        if name == model and (BASELINE, seed) in rows
    ]
    return [(base, scores) for base, scores in pairs if {*keys} <= {*base} & {*scores}]


def format_difference(differences: list[float], digits: int = 4) -> str:
    """Formats a mean difference and its standard error."""
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.fmean(differences):+.{digits}f} ± {error:.{digits}f}"


def format_facts(rows: Rows) -> str:
    """Formats what all rows share, and which come from which commit and hardware."""
    row = next(iter(rows.values()))
    settings = row["training"]["settings"]
    facts = [f"{name.replace('_', ' ')} {settings[name]}" for name in SHOWN if settings.get(name) is not None]
    facts += [
        f"encoder {encoder_name(SEMConfig(backbone_config=settings['model'].get('backbone_config')))}",
        f"{row['num_images']} evaluated images",
    ]
    files = {name: file for row in rows.values() for name, file in row["files"].items()}
    return "\n\n".join([f"{'; '.join(facts)}.", *(f"Trained at {origin}." for origin in describe_origins(files))])


def plot_validation(rows: Rows) -> "Figure":
    """Draws the main validation scores over the steps: a panel for each task, for each model the mean and range over seeds."""
    scores = {key for row in rows.values() for entry in row["history"] for key in entry.get("scores", {})}
    keys = [key for key in shown_keys(rows) if key in scores]
    models = models_of(rows)
    figure = require("matplotlib.figure", extra="train").Figure(figsize=(2.6 * len(keys), 2.6), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for model in models:
            values = values_by_step(rows, model, key)
            axes.plot([*values], [*map(statistics.fmean, values.values())], label=model)
            axes.fill_between([*values], [*map(min, values.values())], [*map(max, values.values())], alpha=0.15)
        axes.set_title(key, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(models), frameon=False)
    return figure


def values_by_step(rows: Rows, model: str, key: str) -> dict[int, list[float]]:
    """Returns a validation score of a model by step, a value for each seed."""
    values: dict[int, list[float]] = {}
    for (name, _), row in rows.items():
        for entry in row["history"] if name == model else []:
            if key in entry.get("scores", {}):
                values.setdefault(entry["step"], []).append(entry["scores"][key])
    return dict(sorted(values.items()))
