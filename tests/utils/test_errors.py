import pytest
from datasets.exceptions import DatasetGenerationError

from transformers_sem import SEMConfig
from transformers_sem.utils.errors import check_keys, plain_errors


@pytest.mark.parametrize(
    "error", [ValueError("bad value"), FileNotFoundError("no such folder"), OSError("disk full")], ids=repr
)
def test_an_error_of_the_user_is_one_line(error):
    with pytest.raises(SystemExit) as exit_info, plain_errors():
        raise error
    assert exit_info.value.code == f"error: {error}"


def test_the_cause_of_a_failed_dataset_is_shown():
    with pytest.raises(SystemExit) as exit_info, plain_errors():
        raise DatasetGenerationError("generic") from ValueError("depth must be metres")
    assert exit_info.value.code == "error: depth must be metres"


def test_a_wrong_model_setting_is_one_line():
    with pytest.raises(SystemExit) as leaving, plain_errors():
        SEMConfig(num_bases="many")
    assert leaving.value.code == "error: Field 'num_bases' expected int, got str (value: 'many')"
    with (
        pytest.raises(SystemExit, match=r"^error: Widths must divide by their attention heads; got .*$"),
        plain_errors(),
    ):
        SEMConfig(hidden_size=100)
    with pytest.raises(SystemExit, match=r"^error: .*'task_loss_weights'.*"), plain_errors():
        SEMConfig(task_loss_weights={"depth": "much"})


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as leaving, plain_errors():
        raise KeyboardInterrupt
    assert leaving.value.code == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_defects_of_the_program_keep_their_traceback():
    with pytest.raises(KeyError), plain_errors():
        raise KeyError("x")


def test_unknown_keys_are_named():
    check_keys("letters", ["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"Unknown letters \['c', 'd'\]; known are \['a', 'b'\]"):
        check_keys("letters", ["d", "a", "c"], ["a", "b"])
