"""Random inputs. A valid one gives what a slow reference says, any other an error of this package in one line."""

import json
import math
import shutil
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import transformers_sem
from transformers_sem import TASKS, MultiTaskMetric, SEMConfig, SEMImageProcessor
from transformers_sem.data import folder
from transformers_sem.evaluation.metrics import METRICS
from transformers_sem.tasks import to_label
from transformers_sem.training.config import TrainingConfig, claim_output_dir, model_config
from transformers_sem.utils.errors import describe_error
from transformers_sem.utils.loading import explain_failure, load_image_processor

from .tiny import TINY_MODEL


pytestmark = pytest.mark.slow
PACKAGE = str(Path(transformers_sem.__file__).parent)
SIZE = (5, 7)
# Functions of transformers that name an argument of a processor in one line
CHECKS_OF_TRANSFORMERS = (
    "validate_preprocess_arguments",
    "get_size_dict",
    "_convert_tensor_type",
    "_get_is_as_tensor_fns",
    "_missing_",
)


def fuzz(max_examples, **strategies):
    """Runs a test on the same random inputs each time."""
    fixed = settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )
    return lambda test: fixed(given(**strategies)(test))


def outcome(call):
    """What a call returns, or `None` where it refuses its input."""
    try:
        return call()
    except (ValueError, OSError, StrictDataclassError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        is_plain = frames[-1].filename.startswith(PACKAGE) or frames[-1].name in CHECKS_OF_TRANSFORMERS
        assert is_plain or isinstance(error, StrictDataclassError), frames[-1]
        assert len(describe_error(error)) < 20_000
        return None


# Inputs

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, -(2**70), 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["channels_last", "cpu", "float32", "semseg", "depth", "nan", "1e5", "true"]),
)


def nested(values, keys):
    return st.recursive(
        values,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    )


json_values = nested(scalars, st.text(max_size=4) | st.sampled_from(["height", "width", "semseg", "0", "1"]))
yaml_values = nested(
    scalars | st.dates(), st.text(max_size=4) | st.integers(-2, 300) | st.booleans() | st.none() | st.dates()
)
VALUES = {
    "levels": lambda rng, shape: rng.integers(0, 256, shape),
    "ids": lambda rng, shape: rng.integers(0, 3, shape),
    "mask": lambda rng, shape: rng.integers(0, 2, shape) * 255,
    "shares": lambda rng, shape: rng.random(shape),
    "signed": lambda rng, shape: rng.normal(size=shape),
    "large": lambda rng, shape: rng.normal(size=shape) * 1e5,
    "nan": lambda rng, shape: np.where(rng.random(shape) < 0.3, np.nan, rng.random(shape)),
    "inf": lambda rng, shape: np.where(rng.random(shape) < 0.3, np.inf, rng.random(shape)),
    "ids and 255": lambda rng, shape: np.where(rng.random(shape) < 0.3, 255, rng.integers(0, 2, shape)),
}
DTYPES = [
    "bool",
    "u1",
    "i1",
    "i2",
    "u2",
    "i4",
    "u4",
    "i8",
    "u8",
    "f2",
    "f4",
    "f8",
    "g",
    ">f4",
    ">i2",
    "c8",
    "O",
    "U2",
    "M8[s]",
]
SHAPES = [
    SIZE,
    (*SIZE, 3),
    (3, *SIZE),
    (*SIZE, 4),
    (1, *SIZE),
    (*SIZE, 1),
    (2, *SIZE),
    (2, *SIZE, 3),
    (5,),
    (),
    (0, 7),
    (4, 4, 3),
]
LAYOUTS = {
    "reversed": lambda values: values[..., ::-1],
    "transposed": lambda values: values.T,
    "strided": lambda values: values[::2],
    "Fortran": np.asfortranarray,
    "broadcast": lambda values: np.broadcast_to(values[:1], values.shape),
    "masked": np.ma.masked_array,
}


shapes = st.sampled_from(SHAPES)
dtypes = st.sampled_from(DTYPES) | st.sampled_from(["u1", "f4", "i8"])


@st.composite
def arrays(draw, shapes=shapes, dtypes=dtypes):
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    values = np.asarray(VALUES[draw(st.sampled_from(sorted(VALUES)))](rng, draw(shapes)))
    with np.errstate(all="ignore"):
        values = values.astype("f8").astype(np.dtype(draw(dtypes)))
    for name in draw(st.lists(st.sampled_from(sorted(LAYOUTS)), max_size=2 if draw(st.booleans()) else 0)):
        values = LAYOUTS[name](values) if values.ndim else values
    return values


@st.composite
def tensors(draw):
    values = torch.from_numpy(draw(arrays(dtypes=st.sampled_from(["bool", "u1", "i8", "f4", "f8", "c8"]))).copy())
    change = draw(st.sampled_from(["", "", "bfloat16", "half", "meta", "to_sparse", "requires_grad_"]))
    if change == "meta":
        return values.to("meta")
    return getattr(values.float(), change)() if change else values


@st.composite
def pictures(draw):
    modes = ["1", "L", "P", "RGB", "RGBA", "CMYK", "HSV", "I", "F", "LA", "PA", "La", "RGBa", "I;16", "I;16B"]
    image = Image.new(draw(st.sampled_from(modes)), draw(st.sampled_from([SIZE[::-1], SIZE[::-1], (0, 5), (1, 1)])))
    if 0 not in image.size and draw(st.booleans()):
        values, rng = np.asarray(image), np.random.default_rng(draw(st.integers(0, 9)))
        values = (
            rng.integers(0, draw(st.sampled_from([2, 9, 256])), values.shape) * draw(st.sampled_from([1, 255]))
        ).astype(values.dtype)
        image.frombytes(values.tobytes()) if image.mode != "1" else None
    if draw(st.integers(0, 4)) == 0:
        image.info["transparency"] = draw(st.sampled_from([0, 300, b"", "x", None]))
    return image


inputs = st.one_of(arrays(), arrays(), tensors(), pictures(), scalars)


def changed(valid, keys, values):
    """Valid settings with up to three other values and up to one missing."""
    others = st.dictionaries(st.sampled_from(sorted(keys)) | st.text(max_size=4), values, max_size=3)
    return st.builds(
        lambda new, lost: {key: value for key, value in {**valid, **new}.items() if key not in lost},
        others,
        st.lists(st.sampled_from(sorted(keys)), max_size=1),
    )


# References


def plain_array(values):
    """An array of plain numbers in float64, or `None`."""
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided or values.is_meta or values.is_complex():
            return None
        return values.detach().double().numpy()
    is_plain = isinstance(values, np.ndarray) and not isinstance(values, np.ma.MaskedArray)
    return values.astype(np.float64) if is_plain and values.dtype.kind in "buif" else None


def expected_pixels(values):
    """RGB levels `(3, height, width)` of an array of levels, or `None` where it is no image."""
    pixels = plain_array(values)
    if pixels is None or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        return None
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    pixels = pixels if pixels.shape[0] in (1, 3, 4) else pixels.transpose(2, 0, 1)
    if pixels.shape[0] not in (1, 3, 4) or not (
        np.isfinite(pixels).all() and 0 <= pixels.min() <= pixels.max() <= 255
    ):
        return None
    if pixels.shape[0] == 4:
        alpha = pixels[3:] / 255
        return pixels[:3] * alpha + 255 * (1 - alpha)
    return np.broadcast_to(pixels, (3, *pixels.shape[1:]))


def expected_scores(task, num_labels, prediction, label):
    """The main score, pixel by pixel, or `None` where no pixel is valid."""
    pairs = list(zip(prediction.reshape(-1), label.reshape(-1), strict=True))
    if task == "depth":
        errors = [(max(p, 1e-9) - t) ** 2 for p, t in pairs if t > 0]
        return math.sqrt(sum(errors) / len(errors)) if errors else None
    pairs = [(p, t) for p, t in pairs if t != 255]
    if not pairs:
        return None
    ious = []
    for index in range(num_labels):
        union = sum(p == index or t == index for p, t in pairs)
        ious.append(sum(p == index and t == index for p, t in pairs) / union if union else 0.0)
    return sum(ious) / num_labels


# Images and maps


@fuzz(500, image=inputs)
def test_images(image):
    processor = SEMImageProcessor(do_resize=False, do_normalize=False)
    batch = outcome(lambda: processor(image, return_tensors="pt"))
    if batch is None:
        return
    pixel_values = batch["pixel_values"]
    assert pixel_values.dtype == torch.float32 and pixel_values.ndim == 4 and pixel_values.shape[1] == 3
    assert 0 <= pixel_values.min() <= pixel_values.max() <= 1
    expected = expected_pixels(image)
    if expected is not None:
        torch.testing.assert_close(
            pixel_values[0].double() * 255, torch.tensor(expected), rtol=0, atol=1.5 if 4 in image.shape else 0.01
        )


@fuzz(500, task=st.sampled_from([*TASKS]), task_map=inputs)
def test_maps(task, task_map):
    label = outcome(lambda: to_label(task, task_map))
    if label is None:
        return
    spec, values = TASKS[task], plain_array(task_map)
    assert label.dtype == spec.dtype and spec.kind.is_allowed(label).all()
    if values is not None and values.shape == tuple(label.shape) and task != "normal":
        expected = np.where(values > 0, values, np.nan) if task == "depth" else values
        torch.testing.assert_close(label.double(), torch.tensor(expected).float().double(), equal_nan=True)


@fuzz(
    300,
    arguments=st.dictionaries(
        st.sampled_from([*SEMImageProcessor().to_dict(), "crop_size", "return_tensors"]), json_values, max_size=2
    ),
    maps=st.none()
    | st.dictionaries(st.sampled_from([*TASKS, "flow"]), inputs | st.lists(inputs, max_size=2), max_size=2),
)
def test_arguments_of_the_processor(arguments, maps):
    image = np.full((*SIZE, 3), 9, np.uint8)
    try:
        batch = outcome(lambda: SEMImageProcessor(do_resize=False)(image, maps=maps, **arguments))
    except TypeError as error:
        assert "unexpected keyword argument" in str(error) or "TypedDict" in str(error)  # noqa: PT017
        return
    assert batch is None or torch.as_tensor(np.asarray(batch["pixel_values"][0])).isfinite().all()


# Files of settings


CONFIG = json.loads(SEMConfig(**TINY_MODEL, task_num_labels={"semseg": 3, "depth": 1}).to_json_string(use_diff=False))
PROCESSOR = json.loads(SEMImageProcessor().to_json_string())
TRAINING = {"dataset": "scenes", "tasks": ["depth"], "model": TINY_MODEL}
yaml_texts = st.one_of(
    st.binary(max_size=30),
    st.text(alphabet=":-[]{}&*!#|>'\"%@`,?\n ab01.~", max_size=30).map(str.encode),
    st.sampled_from(
        [b"a: !!timestamp x", b"a: &a [*a]", b"? [a] : b", b"<<: 3", b"a: 2021-99-99", b"--- a\n--- b", b"[" * 999]
    ),
)


def write(path, values):
    path.write_bytes(values if isinstance(values, bytes) else yaml.safe_dump(values, allow_unicode=True).encode())
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@fuzz(150, values=changed(CONFIG, CONFIG, json_values))
def test_config_json(place, values):
    (place / "config.json").write_text(json.dumps(values))

    def load():
        with explain_failure("Cannot use config.json"):
            return SEMConfig.from_pretrained(place, local_files_only=True)

    config = outcome(load)
    if config is not None:
        assert SEMConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@fuzz(150, values=changed(PROCESSOR, [*PROCESSOR, "pad_size", "device", "input_data_format"], json_values))
def test_preprocessor_config_json(place, values):
    (place / "preprocessor_config.json").write_text(json.dumps(values))
    outcome(lambda: load_image_processor(SEMImageProcessor, place, local_files_only=True))


task_settings = st.fixed_dictionaries(
    {},
    optional={
        "classes": st.lists(st.text(max_size=3), max_size=3) | yaml_values,
        "ignored": st.integers(-1, 300) | yaml_values,
        "unit": st.sampled_from(["metre", "millimetre"]) | yaml_values,
        "axes": st.sampled_from(["right-up-backward"]) | yaml_values,
    },
)


@fuzz(
    300,
    values=yaml_texts
    | yaml_values
    | st.dictionaries(st.sampled_from([*TASKS, "flow"]), task_settings | yaml_values, max_size=2).map(
        lambda tasks: {"tasks": tasks}
    ),
)
def test_dataset_yaml(place, values):
    found = outcome(lambda: folder.read_description(write(place / "dataset.yaml", values)))
    for task in found or {}:
        assert callable(folder.build_reader(task, found[task]))
        assert all(isinstance(name, str) for names in folder.class_names(found).values() for name in names)


overrides = st.builds(
    "{}={}".format,
    st.sampled_from([*TrainingConfig.__dataclass_fields__, "model.num_bases", "a..b", ""]),
    json_values.map(json.dumps) | st.text(max_size=5),
)


@fuzz(
    200,
    values=yaml_texts | yaml_values | changed(TRAINING, TrainingConfig.__dataclass_fields__, yaml_values),
    changes=st.lists(overrides | st.text(max_size=5), max_size=2),
)
def test_training_yaml(place, values, changes):
    config = outcome(lambda: TrainingConfig.load(write(place / "train.yaml", values), changes))
    if config is None:
        return
    shutil.rmtree(
        place / "run", ignore_errors=True
    )  # a run there would keep its settings that have no effect on weights
    config.output_dir = str(place / "run")
    claim_output_dir(config)
    assert TrainingConfig.load(place / "run" / "training.yaml") == config or "nan" in repr(config)
    benchmark = outcome(config.get_benchmark)
    if benchmark is not None:
        outcome(lambda: model_config(config, benchmark))


# Metrics


@st.composite
def pairs(draw):
    """A task with a metric, and a prediction and a label of it that may fit."""
    task = draw(st.sampled_from(sorted(METRICS)))
    num_channels = 3 if task == "normal" else 0
    shape = (3, *SIZE) if num_channels else SIZE
    kinds = {"semseg": ["i8", "u1"], "parsing": ["i8", "u1"], "saliency": ["f4"]}.get(task, ["f4", "f8"])
    prediction = draw(arrays(st.just(shape), st.sampled_from(kinds)) | inputs)
    label = draw(
        arrays(
            st.just((1, *SIZE) if task == "depth" else shape), st.sampled_from(["i8"] if task == "saliency" else kinds)
        )
        | inputs
    )
    return task, prediction, label


@fuzz(500, pair=pairs(), num_labels=st.sampled_from([1, 2, 3, 40]) | scalars)
def test_metrics(pair, num_labels):
    task, prediction, label = pair

    def score():
        return MultiTaskMetric({task: num_labels}).compute(
            predictions={task: [prediction]}, references={task: [label]}
        )

    scores = outcome(score)
    if scores is None:
        return
    assert all(0 <= value < math.inf for value in scores.values())
    if task in ("semseg", "parsing", "depth"):
        expected = expected_scores(task, num_labels, plain_array(prediction), plain_array(label))
        main = scores.get(f"{task}/{METRICS[task].main}")
        assert main is None if expected is None else main == pytest.approx(expected, rel=1e-5, abs=1e-9)


@fuzz(
    200,
    predictions=json_values | st.dictionaries(st.just("depth"), st.lists(inputs, max_size=2)),
    references=json_values | st.dictionaries(st.just("depth"), st.lists(inputs, max_size=2)),
)
def test_what_is_no_batch_of_a_metric(predictions, references):
    outcome(lambda: MultiTaskMetric({"depth": 1}).add_batch(predictions=predictions, references=references))
