import json
import math

import pytest
from PIL import Image

from transformers_sem.ablation.render import format_difference, read_rows, render_page, values_by_step

from ..cli.commands import run
from ..conftest import REPOSITORY


SETTINGS = {
    "dataset": "nyud_v2",
    "max_steps": 7,
    "batch_size": 2,
    "learning_rate": 0.1,
    "input_size": [32, 64],
    "network_size": None,
    "mixed_precision": "no",
    "model": {"backbone_config": {"model_name": "resnet18"}},
}
PAGE = "# Title\n\nBefore.\n\n<!-- results/rooms -->\nold\n<!-- end of results/rooms -->\n\nAfter.\n"


def write_row(root, name, miou, rmse, hardware="CPU", **settings):
    scores = {"semseg/miou": miou, "depth/rmse": rmse, "depth/abs_rel": 0.5, "depth/scale": 0.9}
    scores = {key: value for key, value in scores.items() if value is not None}
    row = {
        "scores": scores,
        "constant_scores": dict.fromkeys(scores, 0.01),
        "num_images": 5,
        "environment": {"commit": "abc", "hardware": hardware},
        "training": {"settings": SETTINGS | settings},
        "parameters_millions": 1.5,
        "multiply_accumulates_billions": 2.5,
        "history": [{"step": step, "scores": scores} for step in (3, 7)],
    }
    path = root / "results" / "rooms" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))


@pytest.fixture
def root(tmp_path):
    for seed, (base, sem) in enumerate([(0.30, 0.40), (0.34, 0.42), (0.32, 0.40)]):
        write_row(tmp_path, f"seed{seed}/baseline", base, 1.0)
        write_row(tmp_path, f"seed{seed}/sem", sem, 0.9)
    write_row(tmp_path, "seed0/mtl", 0.2, 1.1)
    write_row(tmp_path, "seed0/stl_semseg", 0.25, None)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text(PAGE)
    return tmp_path


def test_a_page_gets_tables_and_curves_and_keeps_its_text(root):
    page = root / "docs" / "results.md"
    written = render_page(page, root)
    text = page.read_text()
    assert text.startswith("# Title\n\nBefore.\n\n<!-- results/rooms -->") and text.endswith("\n\nAfter.\n")
    assert "old" not in text and "Trained at abc on CPU" in text
    assert "| baseline | 3 | 0.3200 ± 0.0200 | 1.0000 ± 0.0000 | 0.9000 ± 0.0000 | 1.50 | 2.50 |" in text
    assert "| MTL | 1 | 0.2000 | 1.1000 | 0.9000 | 1.50 | 2.50 |" in text
    assert "| constant predictor |  | 0.0100 | 0.0100 | 0.0100 | – | – |" in text
    # by hand: 0.10, 0.08 and 0.08; their deviation is 0.01155, over the root of three 0.00667
    # Δm: (33.33 + 10) / 2 = 21.67, (23.53 + 10) / 2 = 16.76 and (25 + 10) / 2 = 17.50, with a deviation of 2.64
    assert "| SEM − baseline | +0.0867 ± 0.0067 | -0.1000 ± 0.0000 | +18.64 ± 1.53 |" in text
    assert "MTL − baseline" not in text  # one seed has no error
    assert [path.name for path in written] == ["results.md", "results_rooms.png"]
    with Image.open(written[1]) as picture:
        assert picture.width > 400


def test_rendering_again_changes_nothing(root, monkeypatch):
    page = root / "docs" / "results.md"
    render_page(page, root)
    text = page.read_text()
    monkeypatch.chdir(root)
    result = run("ablation", "render", "--page", "docs/results.md")
    assert result.code == 0 and "Written: docs/results.md" in result.output
    assert page.read_text() == text


def test_a_page_above_docs_shares_the_curves(root):
    page = root / "README.md"
    page.write_text(PAGE)
    assert render_page(page, root) == [page, root / "docs" / "results_rooms.png"]
    assert "](docs/results_rooms.png)" in page.read_text()


def test_rows_of_several_machines_are_told_apart(root):
    write_row(root, "seed3/sem", 0.4, 0.9, hardware="GPU")
    render_page(root / "docs" / "results.md", root)
    text = (root / "docs" / "results.md").read_text()
    assert "Trained at abc on GPU: seed3/sem." in text and "Trained at abc on CPU: seed0/baseline" in text


def test_single_task_models_of_a_seed_are_one_row(root):
    write_row(root, "seed0/stl_depth", None, 0.8)
    rows = read_rows(root / "results" / "rooms")
    assert rows["stl", 0]["scores"]["semseg/miou"] == 0.25 and rows["stl", 0]["scores"]["depth/rmse"] == 0.8
    assert values_by_step(rows, "stl", "semseg/miou") == {3: [0.25], 7: [0.25]}
    assert values_by_step(rows, "stl", "depth/rmse") == {3: [0.8], 7: [0.8]}
    assert values_by_step(rows, "baseline", "semseg/miou")[3] == [0.30, 0.34, 0.32]


def test_rows_of_other_settings_are_refused(root):
    write_row(root, "seed1/mtl", 0.2, 1.1, batch_size=4)
    with pytest.raises(ValueError, match=r"seed1/mtl\.json has other batch_size"):
        read_rows(root / "results" / "rooms")
    model = SETTINGS["model"] | {"hidden_size": 8, "use_decoder": False}  # the second is what MTL changes
    write_row(root, "seed1/mtl", 0.2, 1.1, model=model)
    with pytest.raises(ValueError, match=r"seed1/mtl\.json has other model\.hidden_size\."):
        read_rows(root / "results" / "rooms")
    (root / "results" / "rooms" / "seed1" / "mtl.json").unlink()
    model = SETTINGS["model"] | {"num_em_iterations": 5}  # `MODELS` has others that change it, but not this one
    write_row(root, "seed2/sem", 0.2, 1.1, model=model)
    with pytest.raises(ValueError, match=r"seed2/sem\.json has other model\.num_em_iterations\."):
        read_rows(root / "results" / "rooms")


def test_a_setting_that_is_newer_than_a_row_has_its_default(root):
    write_row(root, "seed1/mtl", 0.2, 1.1, datasets=[])
    read_rows(root / "results" / "rooms")
    write_row(root, "seed1/mtl", 0.2, 1.1, zoom=[0.25, 4.0])
    with pytest.raises(ValueError, match=r"seed1/mtl\.json has other zoom\."):
        read_rows(root / "results" / "rooms")


def test_a_first_row_of_one_task_has_not_all_constants(root):
    for path in (root / "results" / "rooms" / "seed0").iterdir():
        if path.stem != "stl_semseg":
            path.unlink()
    page = root / "docs" / "results.md"
    render_page(page, root)
    assert "| constant predictor |  | 0.0100 | 0.0100 | 0.0100 | – | – |" in page.read_text()


def test_the_default_encoder_is_named(root):
    for path in (root / "results" / "rooms").rglob("*.json"):
        row = json.loads(path.read_text())
        row["training"]["settings"]["model"] = {}
        path.write_text(json.dumps(row))
    render_page(root / "docs" / "results.md", root)
    assert "encoder vit_large" in (root / "docs" / "results.md").read_text()


def test_a_file_that_is_no_row_is_named(root):
    (root / "results" / "rooms" / "seed0" / "sem.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sem\.json is not.*Remove it"):
        read_rows(root / "results" / "rooms")


def test_what_cannot_be_rendered_is_explained(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marker")
    with pytest.raises(ValueError, match="page.md does not"):
        render_page(page, tmp_path)
    page.write_text(PAGE)
    with pytest.raises(ValueError, match="there are none"):
        render_page(page, tmp_path)


def test_a_difference_has_the_standard_error_of_its_mean():
    assert format_difference([1.0, 3.0]) == f"+2.0000 ± {math.sqrt(2) / math.sqrt(2):.4f}"


def test_times_of_modes_become_a_table(tmp_path):
    shared = {
        "encoder": "vit",
        "input": [32, 48],
        "batch_size": 4,
        "pass": "forward",
        "environment": {"hardware": "H"},
    }
    entries = [
        {**shared, "model": "SEM", "precision": "bf16", "mode": "eager", "milliseconds": 30.0},
        {**shared, "model": "encoder", "precision": "bf16", "mode": "eager", "milliseconds": 12.0},
        {**shared, "model": "SEM", "precision": "bf16", "mode": "compiled", "milliseconds": 20.0},  # cut off
        {**shared, "model": "encoder", "precision": "bf16", "mode": "compiled", "error": "no memory"},
    ]
    folder = tmp_path / "results" / "rooms" / "vit"
    folder.mkdir(parents=True)
    (folder / "modes.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"encoder": "vi')
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert render_page(page, tmp_path) == [page]
    assert "`vit`, batches of 4 at 32 x 48, H:" in page.read_text()
    assert "| forward, bf16, eager | 30.0 | 12.0 | 2.5 |" in page.read_text() and "compiled" not in page.read_text()
    (folder / "modes.jsonl").write_text(json.dumps(entries[-1]) + "\n")
    with pytest.raises(ValueError, match=r"modes\.jsonl has none\. Run it again"):
        render_page(page, tmp_path)


def test_the_page_has_all_results():
    """Tables of rows and of modes where they are marked; the text says what the other folders hold."""
    page = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    for folder in (REPOSITORY / "results").iterdir():
        is_table = (folder / "seed0" / "baseline.json").is_file() or [*folder.glob("*/modes.jsonl")]
        is_marked = is_table and not folder.name.startswith("inter_task_readings")  # those are printed by a script
        assert (f"<!-- results/{folder.name} -->" if is_marked else f"results/{folder.name}") in page, folder.name
