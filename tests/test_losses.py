"""The losses give the values and gradients of the field's reference code, and survive batches without labels."""

import pytest
import torch

from transformers_sem import TASKS, SEMForMultiTaskDensePrediction
from transformers_sem.losses import INVALID_ID

from .samples import invalid_labels, random_labels, random_logits
from .tiny import tiny_config


# the reference's names of the tasks
TASK_OF = {
    "semseg": "semseg",
    "human_parts": "parsing",
    "sal": "saliency",
    "edge": "boundary",
    "normals": "normal",
    "depth": "depth",
}
# Cases that have a test of their own
SPECIAL_CASES = {"normals_zero_and_scaled_pred", "edge_allignored"}
LOSS_KWARGS = {
    "edge_hedstyle_posweightNone_ignore": {"positive_weight": None},
    "edge_posweight0p8_ignore": {"positive_weight": 0.8},
}
HALF_PRECISION = [torch.float32, torch.bfloat16, torch.float16]


def task_of(case):
    return next(task for name, task in TASK_OF.items() if case.startswith(name))


def to_our_format(task, label):
    """Reference labels are float32 `(B, 1 or 3, H, W)` with 255 invalid."""
    label, spec = torch.from_numpy(label), TASKS[task]
    label = torch.where(label == 255, spec.kind.invalid_value, label).to(spec.dtype)
    return label if spec.kind.num_channels else label.squeeze(1)


def loss_and_gradient(arrays, case, **loss_kwargs):
    task = task_of(case)
    logits = torch.from_numpy(arrays[f"{case}/pred"]).requires_grad_()
    loss = TASKS[task].loss(logits, to_our_format(task, arrays[f"{case}/label"]), **loss_kwargs)
    loss.backward()
    return loss.detach(), logits.grad


def assert_gradient(gradient, expected, case=""):
    """Compares the rows that are stored."""
    rows = gradient[:, :, : expected.shape[2]]
    torch.testing.assert_close(
        rows, torch.from_numpy(expected), rtol=1e-4, atol=1e-6, msg=lambda text: f"{case}: {text}"
    )


def test_reference_values_and_gradients(golden):
    arrays = golden("losses")
    cases = {key.split("/")[0] for key in arrays if not key.startswith("total_")} - SPECIAL_CASES
    assert cases >= LOSS_KWARGS.keys() and {task_of(case) for case in cases} == set(TASKS)
    for case in sorted(cases):
        loss, gradient = loss_and_gradient(arrays, case, **LOSS_KWARGS.get(case, {}))
        assert loss.item() == pytest.approx(float(arrays[f"{case}/loss"]), rel=1e-5), case
        assert_gradient(gradient, arrays[f"{case}/grad"], case)


def test_reference_normals_of_length_zero(golden):
    """The first row predicts zero vectors, where the reference's own gradient explodes."""
    arrays = golden("losses")
    loss, gradient = loss_and_gradient(arrays, "normals_zero_and_scaled_pred")
    assert loss.item() == pytest.approx(float(arrays["normals_zero_and_scaled_pred/loss"]), rel=1e-5)
    assert gradient.isfinite().all()
    expected = arrays["normals_zero_and_scaled_pred/grad"]
    assert_gradient(gradient[:, :, 1 : expected.shape[2]], expected[:, :, 1:])


def test_boundary_without_a_label_costs_nothing(golden):
    """Where the reference gives NaN, the mean of nothing."""
    arrays = golden("losses")
    loss, gradient = loss_and_gradient(arrays, "edge_allignored")
    assert loss == 0
    assert_gradient(gradient, arrays["edge_allignored/grad"])


def read_total(arrays, total, key):
    names = dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith(f"{total}/") and "/pred" in name)
    return {TASK_OF[name]: arrays[f"{total}/{name}/{key}"] for name in names}


def to_leaves(predictions):
    return {task: torch.from_numpy(prediction).requires_grad_() for task, prediction in predictions.items()}


@pytest.mark.parametrize("supervision", ["nointer", "withinter"])
def test_reference_totals(golden, supervision):
    arrays = golden("losses")
    totals = {key.split("/")[0] for key in arrays if key.startswith("total_") and f"_{supervision}/" in key}
    assert totals
    for total in totals:
        check_total(arrays, total, supervision)


def check_total(arrays, total, supervision):
    logits = to_leaves(read_total(arrays, total, "pred"))
    auxiliary_logits = to_leaves(read_total(arrays, total, "inter_pred")) if supervision == "withinter" else None
    labels = {task: to_our_format(task, label) for task, label in read_total(arrays, total, "label").items()}
    config = tiny_config(task_num_labels={task: prediction.shape[1] for task, prediction in logits.items()})
    loss, losses = SEMForMultiTaskDensePrediction(config).compute_loss(logits, auxiliary_logits, labels)
    loss.backward()

    assert config.task_loss_weights == {task: float(w) for task, w in read_total(arrays, total, "weight").items()}
    assert loss.item() == pytest.approx(float(arrays[f"{total}/total"]), rel=1e-5)
    for task, expected in read_total(arrays, total, "loss").items():
        assert losses[task].item() == pytest.approx(float(expected), rel=1e-5)
    for task, expected in read_total(arrays, total, "grad").items():
        assert_gradient(logits[task].grad, expected)
    if auxiliary_logits is not None:
        for task, expected in read_total(arrays, total, "inter_grad").items():
            assert_gradient(auxiliary_logits[task].grad, expected)


@pytest.mark.parametrize("dtype", HALF_PRECISION, ids=str)
@pytest.mark.parametrize("task", list(TASKS))
def test_a_batch_without_labels_costs_nothing(task, dtype):
    logits = random_logits(task, 2, (6, 5)).to(dtype).requires_grad_()
    loss = TASKS[task].loss(logits, invalid_labels(task, 2, (6, 5)))
    loss.backward()
    assert loss.shape == ()
    assert loss == 0
    assert logits.grad.dtype == dtype
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", HALF_PRECISION[1:], ids=str)
@pytest.mark.parametrize("task", list(TASKS))
def test_half_precision_logits_cost_as_in_float32(task, dtype):
    logits, labels = random_logits(task, 2, (6, 5)).to(dtype), random_labels(task, 2, (6, 5))
    loss = TASKS[task].loss(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, TASKS[task].loss(logits.float(), labels), rtol=0, atol=0)


@pytest.mark.parametrize("task", list(TASKS))
def test_invalid_pixels_have_no_say(task):
    """They move neither the loss nor, through it, the prediction; all valid pixels do."""
    logits, labels = random_logits(task, 2, (6, 5)).requires_grad_(), random_labels(task, 2, (6, 5))
    invalid = labels.isnan() | (labels == INVALID_ID)
    invalid = (invalid.any(dim=1) if invalid.ndim == 4 else invalid).unsqueeze(1)
    loss = TASKS[task].loss(logits, labels)
    loss.backward()
    moved = torch.where(invalid, logits + 5, logits)
    torch.testing.assert_close(TASKS[task].loss(moved, labels), loss)
    assert torch.equal((logits.grad != 0).any(dim=1, keepdim=True), ~invalid)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_good_prediction_costs_less_than_its_opposite(task):
    logits = 5 * random_logits(task, 2, (6, 5))
    predictions = TASKS[task].kind.predict(logits)
    spec = TASKS[task]
    labels = predictions.unsqueeze(1) if spec.kind.num_channels == 1 else predictions
    labels = labels.round() if spec.dtype == torch.int64 else labels
    labels = labels.to(spec.dtype)
    assert TASKS[task].loss(logits, labels) < TASKS[task].loss(-logits, labels)


@pytest.mark.parametrize("task", ["semseg", "saliency"])
@pytest.mark.parametrize("stray", [-1, 40])
def test_an_id_beyond_the_head_is_named(task, stray):
    logits = random_logits(task, 2, (4, 5))
    labels = torch.zeros(2, 4, 5, dtype=torch.int64)
    labels[1, 2, 3], labels[0, 0, 0] = stray, INVALID_ID
    with pytest.raises(
        ValueError, match=rf"0 to {TASKS[task].num_labels - 1}, 255 invalid; got .*{stray}.*task_num_labels"
    ):
        TASKS[task].loss(logits, labels)
