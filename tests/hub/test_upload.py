"""To the Hub and back, over HTTP, with a server on this machine in the Hub's place."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline

from transformers_sem import SEMForMultiTaskDensePrediction, SEMImageProcessor, SEMModel
from transformers_sem.cli import push
from transformers_sem.cli.prepare import build_parser, run
from transformers_sem.data.nyud_v2 import find_source
from transformers_sem.hub.upload import REPLACED, create_repository, file_sizes, stage_model, upload, write_card

from ..data.nyud_v2_forms import write_tiny_folder
from ..disk import full_disk
from ..tiny import tiny_config
from .hub_server import HubServer
from .test_card import EVALUATION


REPOSITORY = "me/tiny"
TOKEN = "hf_writer"


def go_online(patch, hub, cache, token=TOKEN):
    """Lets this process take the server for the Hub; its endpoint is read from the environment when it is imported."""
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
    patch.setattr(transformers.utils.hub, "_hf_api", None)  # which remembers another endpoint
    patch.delenv("HF_TOKEN", raising=False)
    patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token:
        patch.setenv("HF_TOKEN", token)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as server:
        go_online(monkeypatch, server, tmp_path / "cache")
        yield server


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as `transformers-sem train` leaves it: 12 MB of weights, an image processor, scores and a picture."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = SEMForMultiTaskDensePrediction(tiny_config(hidden_size=176, decoder_hidden_sizes=[96, 64, 32, 32]))
    model.save_pretrained(folder)
    SEMImageProcessor(size={"height": 32, "width": 64}).save_pretrained(folder)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    (folder / "predictions.png").write_bytes(b"a picture")
    (folder / "training_report.html").write_text("not for others")
    return folder


@pytest.fixture(scope="module")
def staged(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    stage_model(trained, folder)
    write_card(folder, REPOSITORY)
    return folder


def push_staged(staged, **options):
    create_repository(REPOSITORY, repo_type="model", private=options.pop("private", False))
    return upload(staged, REPOSITORY, repo_type="model", **options)


def remote(hub, name=REPOSITORY, kind="model"):
    return hub.repositories[kind, name]


# ----------------------------------------------------------------------------------------------------------------------
# There and back


def test_everything_is_sent_in_one_commit(hub, staged):
    address = push_staged(staged, message="First")
    repository = remote(hub)
    assert repository.messages == ["initial commit", "First"]
    assert address == f"{hub.url}/{REPOSITORY}/commit/{repository.sha()}"
    files = repository.commits[-1]
    assert sorted(files) == [
        *("README.md", "config.json", "evaluation.json", "model.safetensors", "predictions.png"),
        "preprocessor_config.json",
    ]
    assert {name: file.content for name, file in files.items()} == {
        path.name: path.read_bytes() for path in staged.iterdir()
    }
    assert files["model.safetensors"].is_large and len(files["model.safetensors"].content) > 12e6
    assert file_sizes(staged) == {name: len(file.content) for name, file in sorted(files.items())}


def test_a_damaged_note_of_the_training_is_not_sent(trained, tmp_path):
    run, staged = shutil.copytree(trained, tmp_path / "run"), tmp_path / "staged"
    (run / "training.json").write_text("{")
    with pytest.raises(ValueError, match="Cannot use .*training.json"):
        stage_model(run, staged)
    assert not staged.exists()


def test_code_that_is_not_sent_is_not_referred_to(trained, tmp_path):
    (tmp_path / "run").mkdir()
    stage_model(trained, tmp_path / "run", custom_code=True)  # a training may start from a repository with code
    configurations = [(tmp_path / "run" / name).read_text() for name in ("config.json", "preprocessor_config.json")]
    assert all("auto_map" in text for text in configurations) and "custom_pipelines" in configurations[0]
    (tmp_path / "run" / "training.json").write_text("{}")
    (tmp_path / "staged").mkdir()
    stage_model(tmp_path / "run", tmp_path / "staged")
    write_card(tmp_path / "staged", REPOSITORY)
    texts = [path.read_text() for path in (tmp_path / "staged").glob("*.json")]
    assert not [text for text in texts if "auto_map" in text or "custom_pipelines" in text]
    assert "trust_remote_code" not in (tmp_path / "staged" / "README.md").read_text()
    assert (tmp_path / "staged" / "training.json").read_text() == "{}"


@pytest.mark.slow
def test_what_was_sent_loads(hub, staged, trained, tmp_path):
    push_staged(staged)
    expected = SEMForMultiTaskDensePrediction.from_pretrained(trained).eval()
    model = SEMForMultiTaskDensePrediction.from_pretrained(REPOSITORY)
    assert (tmp_path / "cache" / "models--me--tiny").is_dir()
    found = model.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor)
    assert type(AutoModel.from_pretrained(REPOSITORY)) is SEMModel
    assert AutoConfig.from_pretrained(REPOSITORY).to_dict() == model.config.to_dict()
    assert AutoImageProcessor.from_pretrained(REPOSITORY).size == {"height": 32, "width": 64}

    photo = np.zeros((30, 40, 3), dtype=np.uint8)
    predict = pipeline("multi-task-dense-prediction", model=REPOSITORY)
    assert type(predict.model) is SEMForMultiTaskDensePrediction
    prediction = predict(photo)["predictions"]
    processor = SEMImageProcessor.from_pretrained(trained)
    with torch.no_grad():
        outputs = expected(**processor(photo, return_tensors="pt"))
    local = processor.post_process_dense_prediction(outputs, target_sizes=[(30, 40)])[0]
    assert list(prediction) == expected.config.tasks
    assert all(torch.equal(prediction[task], local[task]) for task in local)

    folder = snapshot_download(REPOSITORY)
    assert file_sizes(Path(folder)) == file_sizes(staged)
    card = ModelCard.load(REPOSITORY)
    assert str(card) == (staged / "README.md").read_text(encoding="utf-8")
    assert f'model="{REPOSITORY}"' in card.text


def test_an_update_sends_what_is_new_and_removes_what_is_gone(hub, staged, tmp_path):
    push_staged(staged)
    HfApi().upload_file(path_or_fileobj=b"old code", path_in_repo="modeling_sem.py", repo_id=REPOSITORY)
    HfApi().upload_file(path_or_fileobj=b"by hand", path_in_repo="notes.txt", repo_id=REPOSITORY)
    HfApi().upload_file(path_or_fileobj=b"by hand", path_in_repo="examples/handler.py", repo_id=REPOSITORY)
    received, num_commits = hub.received, len(remote(hub).commits)
    shutil.copytree(staged, tmp_path / "new")
    (tmp_path / "new" / "predictions.png").unlink()
    (tmp_path / "new" / "evaluation.json").write_text(json.dumps({**EVALUATION, "num_images": 8}))
    write_card(tmp_path / "new", REPOSITORY)
    push_staged(tmp_path / "new", delete_patterns=REPLACED)
    assert len(remote(hub).commits) == num_commits + 1
    files = remote(hub).commits[-1]
    assert "predictions.png" not in files and "modeling_sem.py" not in files
    assert files["notes.txt"].content == files["examples/handler.py"].content == b"by hand"
    assert json.loads(files["evaluation.json"].content)["num_images"] == 8
    assert hub.received == received  # the weights are the same
    push_staged(tmp_path / "new", delete_patterns=REPLACED)
    assert len(remote(hub).commits) == num_commits + 1


def test_a_cut_connection_leaves_the_repository_as_it_was(hub, staged, trained, tmp_path, monkeypatch):
    push_staged(staged)
    before, num_commits = remote(hub).sha(), len(remote(hub).commits)
    torch.manual_seed(1)
    shutil.copytree(staged, tmp_path / "new")
    SEMForMultiTaskDensePrediction(tiny_config()).save_pretrained(tmp_path / "new")
    hub.cut_uploads = True
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the tries of the client
    with pytest.raises(
        OSError, match="The upload to me/tiny failed, and the repository is unchanged.*Run the same command again"
    ):
        push_staged(tmp_path / "new", delete_patterns=REPLACED)
    assert (remote(hub).sha(), len(remote(hub).commits)) == (before, num_commits)
    assert snapshot_download(REPOSITORY).endswith(before)

    hub.cut_uploads = False
    push_staged(tmp_path / "new", delete_patterns=REPLACED)
    assert len(remote(hub).commits) == num_commits + 1
    sent = remote(hub).commits[-1]["model.safetensors"].content
    assert sent == (tmp_path / "new" / "model.safetensors").read_bytes()


# ----------------------------------------------------------------------------------------------------------------------
# Who may


def test_without_a_token_nothing_is_sent(hub, staged, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        OSError, match="No user is logged in to the Hub, so nothing is uploaded to me/tiny. Log in with"
    ):
        push_staged(staged)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [("hf_wrong", "me/tiny", "401.*Log in with `hf auth login`"), (TOKEN, "other/tiny", "403.*don't have the rights")],
)
def test_a_token_without_rights_is_refused(hub, monkeypatch, token, name, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=message) as refused:
        create_repository(name, repo_type="model", private=False)
    assert token not in str(refused.value)
    assert hub.repositories == {}


def test_a_token_that_may_only_read_is_refused_at_the_upload(hub, staged, monkeypatch):
    push_staged(staged)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    before = remote(hub).sha()
    with pytest.raises(OSError, match="401.*Log in with"):
        push_staged(staged, delete_patterns=["*"])
    assert remote(hub).sha() == before


def test_private_is_private(hub, staged, monkeypatch):
    push_staged(staged, private=True)
    assert HfApi().model_info(REPOSITORY).private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info(REPOSITORY)


def test_what_must_be_private_is_not_sent_to_a_public_repository(hub, staged):
    create_repository(REPOSITORY, repo_type="model", private=False)
    with pytest.raises(OSError, match="me/tiny must be private, but it exists and is public"):
        push_staged(staged, private=True)
    assert remote(hub).commits == [{}]


# ----------------------------------------------------------------------------------------------------------------------
# transformers' own push_to_hub


@pytest.mark.slow
def test_push_to_hub_of_a_model_keeps_the_card(hub, staged, trained):
    push_staged(staged)
    SEMForMultiTaskDensePrediction.from_pretrained(trained).push_to_hub(REPOSITORY)
    assert str(ModelCard.load(REPOSITORY)) == (staged / "README.md").read_text(encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------------------
# A dataset


def test_a_data_set_is_sent_and_loads(hub, tmp_path, monkeypatch):
    root = write_tiny_folder(tmp_path / "NYUDv2", {"train": ["0001", "0003"], "val": ["0002"]})
    output = tmp_path / "prepared"
    options = ["--output", str(output), "--push-to-hub", "me/rooms", "--processes", "1"]
    lines = [*run(find_source, build_parser().parse_args(["nyud_v2", str(root), *options]))]
    assert lines[-1] == f"Uploaded: {hub.url}/me/rooms/commit/{remote(hub, 'me/rooms', 'dataset').sha()}"
    assert remote(hub, "me/rooms", "dataset").is_private
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    rows = datasets.load_dataset("me/rooms")
    local = datasets.load_dataset(str(output))
    assert rows["train"].to_list() == local["train"].to_list()
    streamed = datasets.load_dataset("me/rooms", split="validation", streaming=True)
    assert [row["id"] for row in streamed] == ["0002"]


# ----------------------------------------------------------------------------------------------------------------------
# What is refused


def break_config(folder):
    (folder / "config.json").write_text("{")


def be_another_model(folder):
    (folder / "config.json").write_text('{"model_type": "dpt"}')


def have_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


def lose_config(folder):
    (folder / "config.json").unlink()


def lose_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def cut_weights(folder):
    os.truncate(folder / "model.safetensors", 100_000)


def lose_tensors(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def have_texts_as_scores(folder):
    (folder / "evaluation.json").write_text(json.dumps({**EVALUATION, "scores": "high"}))


def be_evaluated_long_ago(folder):
    (folder / "evaluation.json").write_text('{"scores": {}}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "There is no folder .*transformers-sem train"),
        (lose_config, "not a trained model: it has no config.json"),
        (lose_processor, "not a trained model: it has no preprocessor_config.json"),
        (break_config, "config.json.* is not a valid JSON"),
        (be_another_model, "Cannot use config.json of .*: the model type is 'dpt', not 'sem'"),
        (have_a_pickle, r"weights are pickles, \['pytorch_model.bin'\], which can run code"),
        (lose_weights, "it has no weights"),
        (cut_weights, "cannot be read"),
        (lose_tensors, "1 tensors are missing or unexpected"),
        (have_texts_as_scores, "A report of .* is not one of `transformers-sem evaluate`: .*Write it again"),
        (be_evaluated_long_ago, "evaluation.json lacks .*Write it again with `transformers-sem evaluate`"),
    ],
)
def test_what_is_no_trained_model_is_refused(trained, tmp_path, damage, message):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    damage(folder)
    (tmp_path / "staging").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        stage_model(folder, tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("custom_code", [False, True])
def test_a_full_disk_is_an_error_with_a_remedy(trained, tmp_path, custom_code):
    with full_disk(100_000), pytest.raises(OSError, match="Cannot write to .* Free some space"):
        stage_model(trained, tmp_path, custom_code=custom_code)


def test_names_that_the_hub_has_not_are_refused(hub):
    with pytest.raises(ValueError, match="Repo id must"):
        create_repository("me/a/b", repo_type="model", private=False)
    assert hub.requests == []


# ----------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def push_command(capsys):
    """Runs the command `push`; returns what it prints."""

    def run_command(*arguments):
        push.main([str(argument) for argument in arguments])
        return capsys.readouterr()

    return run_command


def test_a_dry_run_lists_and_sends_nothing(hub, trained, push_command, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    lines = push_command("--model", trained, "--repo-id", REPOSITORY, "--dry-run").out.splitlines()
    assert f"{(trained / 'model.safetensors').stat().st_size:,}  model.safetensors" in lines[3]
    assert "in 6 files, for me/tiny" in lines[-1]
    assert hub.requests == []


def test_the_script_sends_and_never_prints_the_token(hub, trained, push_command):
    output = push_command("--model", trained, "--repo-id", "tiny", "--private")
    assert output.out.splitlines()[-1] == f"Uploaded: {hub.url}/{REPOSITORY}/commit/{remote(hub).sha()}"
    assert TOKEN not in output.out + output.err
    assert remote(hub).is_private
    assert f'model="{REPOSITORY}"' in remote(hub).commits[-1]["README.md"].content.decode()


@pytest.mark.slow
def test_the_script_says_in_a_line_what_is_wrong(hub, trained, push_command, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SystemExit, match="^error: The Hub did not create me/tiny: .*401.*Log in with") as stopped:
        push_command("--model", trained, "--repo-id", REPOSITORY)
    assert "hf_wrong" not in str(stopped.value) and "\n" not in str(stopped.value)


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["transformers_sem"] = None
import numpy
import transformers
from transformers import pipeline
name = "me/tiny"
heads = ("DepthEstimation", "NormalEstimation", "SemanticSegmentation", "UniversalSegmentation")
for auto_class in ("AutoConfig", "AutoImageProcessor", "AutoModel", *(f"AutoModelFor{head}" for head in heads)):
    auto_class = getattr(transformers, auto_class)
    part = auto_class.from_pretrained(name, trust_remote_code=True)
    assert type(part).__module__.startswith("transformers_modules"), type(part)
predict = pipeline("multi-task-dense-prediction", model=name, trust_remote_code=True)
assert predict(numpy.zeros((30, 40, 3), numpy.uint8))["predictions"]["depth"].shape == (30, 40)
"""


@pytest.mark.slow
def test_a_repository_with_its_code_needs_no_package(trained, repository, tmp_path):
    with HubServer() as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        environment["PYTHONPATH"] = str(repository / "src")
        script = ["-m", "transformers_sem", "push", "--model", str(trained), "--repo-id", REPOSITORY]
        for command in ([*script, "--custom-code"], ["-c", WITHOUT_THE_PACKAGE]):
            finished = subprocess.run(
                [sys.executable, *command], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path
            )
            assert finished.returncode == 0, finished.stderr[-3000:]
        code = {name for name in remote(hub).commits[-1] if name.endswith(".py")}
        assert code <= {*REPLACED}
        card = remote(hub).commits[-1]["README.md"].content.decode()
        assert "trust_remote_code=True" in card and "import transformers_sem" not in card
