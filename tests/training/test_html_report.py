import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from transformers_sem.training.config import TrainingConfig
from transformers_sem.training.html_report import moving_mean, read_records, write_html_report

from ..tiny import tiny_config


TASKS = {"depth": 1, "normal": 3}
HOSTILE = "<script>alert('x')</script><img src=\"https://example.org/x.png\" onerror='x'>"


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data):
        self.text += data

    def pictures(self):
        return [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]

    def ids(self):
        return {value for _, name, value in self.attributes if name == "id"}


def log_entry(step, **overrides):
    entry = {"step": step, "loss": 5 / step, "losses": {"depth": 2 / step, "normal": 1 / step}, "learning_rate": 1e-5}
    return {**entry, "images_per_second": 8.0, "memory_gigabytes": 1.5, "skipped_steps": 0, **overrides}


def write_history(folder, *entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "history.jsonl").write_text("".join(f"{line}\n" for line in lines))


def write_snapshot(folder, step, **overrides):
    states = {"depth": [0.0, 1.0], "normal": [2.0, 3.0]}
    facts = {"step": step, "tasks": list(TASKS), "num_images": 8, "num_pictures": 1, "offsets": states}
    facts |= {"scores": {"depth/rmse": 1 / step, "normal/mean_error": 30.0}, "stage_weights": states, **overrides}
    (folder / "snapshots").mkdir(exist_ok=True)
    (folder / "snapshots" / f"step_{step:06d}.json").write_text(json.dumps(facts))
    Image.fromarray(np.zeros((16, 48, 3), dtype=np.uint8)).save(folder / "snapshots" / f"step_{step:06d}.png")


def write_evaluation(folder, **overrides):
    report = {
        "scores": {"depth/rmse": 0.61234, "depth/delta1": 0.9, "normal/mean_error": 21.5},
        "constant_scores": {"depth/rmse": 1.25, "depth/delta1": 0.4, "normal/mean_error": 50.25},
        "num_images": 654,
    }
    (folder / "evaluation.json").write_text(json.dumps({**report, **overrides}))


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "my_run"
    folder.mkdir()
    return TrainingConfig(output_dir=str(folder), max_steps=40, batch_size=4, log_every=10, learning_rate=0.125)


@pytest.fixture
def folder(config, tmp_path):
    return tmp_path / "my_run"


@pytest.fixture
def draw(config):
    def draw_page(status="running", **overrides):
        return Page(write_html_report(config, tiny_config(task_num_labels=dict(TASKS), **overrides), status))

    return draw_page


def test_a_whole_run_has_every_section(draw, folder):
    write_history(folder, *map(log_entry, range(10, 50, 10)))
    for step in (20, 40):
        write_snapshot(folder, step)
    write_evaluation(folder)
    page = draw("finished")
    assert page.ids() >= {"losses", "scores", "predictions", "modules", "run", "settings", "environment"}
    words = ["my_run", "finished", "40 of 40", "160", "0:00:20 of training", "0.6123", "1.2500", "654", "8 images"]
    words += ["step 20", "step 40", "ground truth", "0.125", "learning_rate", "transformers", "depth/rmse ↓"]
    assert [word for word in words if word not in page.text] == []
    # total and 2 losses, rate, speed and memory, 2 scores, 2 x 2 states, photo and 2 x 3 maps
    assert len(page.pictures()) == 3 + 3 + 2 + 4 + 7
    assert 'class="notes"' not in page.source
    assert sorted(path.name for path in folder.iterdir() if "unfinished" in path.name) == []


def test_the_page_is_one_file(draw, folder):
    write_history(folder, log_entry(10))
    write_snapshot(folder, 10)
    write_evaluation(folder)
    page = draw("finished")
    assert all(re.match(r"data:image/(svg\+xml|jpeg);base64,", source) for source in page.pictures())
    assert {"script", "iframe", "object", "embed"}.isdisjoint(page.tags)
    outside = [
        entry for entry in page.attributes if re.search(r"(https?:)?//", re.sub(r"data:[^\"' ]*", "", entry[2]))
    ]
    assert outside == []
    assert "url(" not in page.source and "@import" not in page.source
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


def test_curves_do_not_reach_outside(draw, folder):
    write_history(folder, log_entry(10), log_entry(20))
    for source in draw().pictures():
        svg = base64.b64decode(source.partition("base64,")[2]).decode()
        assert re.findall(r"(?:href|src)=\"(?!#)", svg) == []
        assert "<script" not in svg


def test_hostile_text_stays_text(config, tmp_path):
    folder = tmp_path / "run <b> & 'co'"
    folder.mkdir()
    write_history(folder, log_entry(10, losses={HOSTILE: 1.0, "depth": 1.0}, learning_rate=HOSTILE), HOSTILE)
    write_snapshot(folder, 10, scores={HOSTILE: 1.0, "depth/rmse": HOSTILE})
    write_evaluation(folder, num_images=HOSTILE)
    config.output_dir, config.data_dir, config.dataset = str(folder), HOSTILE, HOSTILE
    plain = tiny_config(task_num_labels=dict(TASKS))
    page = Page(write_html_report(config, plain, HOSTILE))
    assert {"script", "b"}.isdisjoint(page.tags)
    assert page.text.count(HOSTILE) >= 4  # data set, its folder, status, number of images
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not any("example.org" in value for _, name, value in page.attributes)


def test_nothing_yet(draw):
    page = draw()
    assert "0 of 40" in page.text
    assert "not known yet" in page.text
    assert page.text.count("Nothing is logged yet.") == 2
    assert "No snapshot has been taken yet." in page.text
    assert "comes at the end" in page.text
    assert page.pictures() == []


def test_only_a_running_page_reloads_itself(draw):
    refresh = ("meta", "http-equiv", "refresh")
    assert refresh in draw("running").attributes
    assert refresh not in draw("stopped").attributes


@pytest.mark.parametrize("line", ["{", "[1, 2]", '{"step": "30"}', '{"step": 30, "losses": [1]}'], ids=ascii)
def test_a_broken_line_of_the_history_ends_the_curves(draw, folder, line):
    write_history(folder, log_entry(10), line, log_entry(30))
    assert read_records(folder).history == [log_entry(10)]
    page = draw()
    assert "10 of 40" in page.text
    assert "Line 2 of 3 of history.jsonl could not be read" in page.text


def test_a_history_that_is_broken_from_the_start_is_noted(draw, folder):
    write_history(folder, "{")
    page = draw()
    assert "Line 1 of 1 of history.jsonl could not be read" in page.text
    assert "Nothing is logged yet." in page.text


@pytest.mark.parametrize("speeds", [(1e-300, 1e-300), (5e-324, 1.0), (8.0, 1e-12)], ids=str)
def test_speeds_that_cannot_be_right_are_noted(draw, folder, speeds):
    write_history(folder, *(log_entry(10 + place, images_per_second=speed) for place, speed in enumerate(speeds)))
    assert "the speeds in history.jsonl cannot be right" in draw().text


@pytest.mark.parametrize(
    "value", [10**400, 1e308, float("inf"), True, "1", None, [1], {}], ids=lambda value: str(value)[:9]
)
def test_values_that_cannot_be_drawn_are_left_out(draw, folder, value):
    names = ("loss", "learning_rate", "images_per_second", "memory_gigabytes", "skipped_steps")
    write_history(folder, log_entry(10, losses={"depth": value}, **dict.fromkeys(names, value)))
    assert draw().pictures() == []


def test_short_entries_are_drawn_as_far_as_they_go(draw, folder):
    entries = [{"step": 10}, log_entry(20, loss=None, losses={"depth": float("nan")}), log_entry(30, losses={})]
    write_history(folder, *entries, log_entry(40, skipped_steps=3, images_per_second=0))
    page = draw()
    assert "40 of 40" in page.text
    assert "3, not finite" in page.text
    assert "skipped steps over the steps" in page.source
    assert 'class="notes"' not in page.source


@pytest.mark.parametrize(
    "overrides",
    [
        {"scores": 3},
        {"offsets": None},
        {"stage_weights": {"depth": 1}},
        {"tasks": None},
        {"tasks": [["depth"], ["normal"]]},
        {"tasks": 48 * ["depth"]},
        {"step": "20"},
        {"step": 10**400},
        {"num_images": None},
        {"num_pictures": 0},
        {"num_pictures": -1},
        {"num_pictures": 1.5},
        {"num_pictures": 9},
    ],
    ids=lambda overrides: str(overrides)[:40],
)
def test_broken_snapshots_are_noted(folder, overrides):
    write_snapshot(folder, 10)
    write_snapshot(folder, 20)
    facts = json.loads((folder / "snapshots" / "step_000020.json").read_text())
    (folder / "snapshots" / "step_000020.json").write_text(json.dumps(facts | overrides))
    records = read_records(folder)
    assert [snapshot["step"] for snapshot in records.snapshots] == [10]
    assert records.notes == ["The snapshot step_000020.json could not be read and is left out."]


def test_a_snapshot_of_other_tasks_has_no_pictures_beside_them(draw, folder):
    write_snapshot(folder, 10, tasks=["depth"])
    write_snapshot(folder, 20)
    page = draw()
    assert "step 20" in page.text and "step 10" not in page.text


@pytest.mark.parametrize("place", [3, 20, -29])
def test_a_broken_picture_is_noted(folder, place):
    write_snapshot(folder, 10)
    path = folder / "snapshots" / "step_000010.png"
    content = path.read_bytes()
    path.write_bytes(content[:place] + content[place:][4:])  # of the signature, the size, the pixels
    assert read_records(folder).notes == ["The snapshot step_000010.json could not be read and is left out."]


SCORE = '"constant_scores": {"depth/rmse": 1}, "num_images": 1'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '"scores"',
        '{"scores": {"albedo/x": 1}}',
        '{"scores": {"depth/rmse": null}}',
        '{"scores": {"depth/rmse": 1}, "constant_scores": {"depth/rmse": 1}}',
        f'{{"scores": ["depth/rmse"], {SCORE}}}',
        f'{{"scores": [1], {SCORE}}}',
        f'{{"scores": {{"depth/rmse": {10**400}}}, {SCORE}}}',
    ],
    ids=lambda text: text[:40],
)
def test_a_broken_evaluation_is_noted(draw, folder, text):
    (folder / "evaluation.json").write_text(text)
    page = draw()
    assert "evaluation.json could not be read" in page.text
    assert "comes at the end" in page.text


def test_few_of_many_snapshots_are_compared(draw, folder):
    for step in range(1, 13):
        write_snapshot(folder, step)
    steps = re.findall(r">step (\d+)<", draw().source)
    assert steps == 2 * ["1", "3", "5", "8", "10", "12"]


def test_settings_that_differ_are_marked(draw):
    changed = re.findall(r'<tr class="changed"><td>([^<]*)</td>', draw(num_bases=7).source)
    assert {"output_dir", "max_steps", "learning_rate", "model.num_bases"} <= set(changed)
    assert {"weight_decay", "batch_size", "model.em_temperature"}.isdisjoint(changed)


def test_moving_mean():
    assert moving_mean([1.0, 2.0, 6.0, 3.0], 1) == [1.5, 3.0, pytest.approx(11 / 3), 4.5]
