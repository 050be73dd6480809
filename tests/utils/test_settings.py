import pytest

from transformers_sem.utils.settings import apply_overrides, format_yaml, parse_yaml, read_settings


def test_a_file_is_nested_settings(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("max_steps: 7\nmodel:\n  hidden_size: 64\n  layers: [1, 2]\n")
    assert read_settings(path) == {"max_steps": 7, "model": {"hidden_size": 64, "layers": [1, 2]}}
    path.write_text("# nothing\n")
    assert read_settings(path) == {}


def test_overrides_reach_inside():
    values = {"max_steps": 7, "model": {"hidden_size": 64, "backbone": {"name": "a", "indices": [1]}}}
    overrides = ["max_steps=8", "model.backbone.name=b", "model.num_bases=32", "data.num_train=null", "name=x=y.z"]
    assert apply_overrides(values, overrides) == {
        "max_steps": 8,
        "model": {"hidden_size": 64, "backbone": {"name": "b", "indices": [1]}, "num_bases": 32},
        "data": {"num_train": None},
        "name": "x=y.z",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1E5", 1e5), ("-2.5e3", -2500.0), ("1.0e-5", 1e-5), ("+1e+2", 100.0), (".5", 0.5), ("3", 3)],
)
def test_numbers_are_numbers(text, value):
    number = parse_yaml(text, "here")
    assert (number, type(number)) == (value, type(value))
    assert parse_yaml(f"[{text}]", "here") == [value]


@pytest.mark.parametrize("text", ["e5", "1e", "1e-", "a1e5", "1e5b", "'1e-5'", "1e-5.0"])
def test_other_text_stays_text(text):
    assert parse_yaml(text, "here") == text.strip("'")


@pytest.mark.parametrize(
    "value", ["1e5", "3e-4", "1_0e2", "5", "no", "2021-01-01", "~", "", 1e-5, 1e16, 3, None, True]
)
def test_what_is_written_is_read_as_it_was(value):
    values = {"last": [value], "first": {"key": value}}
    text = format_yaml(values)
    assert parse_yaml(text, "here") == values and list(parse_yaml(text, "here")) == [*values]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_steps", ["key=value", "'max_steps'"]),
        ("tasks=[depth", ["tasks=[depth: ", "not YAML"]),
        ("max_steps.x=3", ["`max_steps.x`", "`max_steps`", "7", "no fields"]),
        ("model.hidden_size.x=3", ["`model.hidden_size.x`", "`hidden_size`", "64"]),
    ],
)
def test_a_wrong_override_is_explained(override, words):
    with pytest.raises(ValueError) as error:
        apply_overrides({"max_steps": 7, "model": {"hidden_size": 64}}, [override])
    assert [word for word in words if word not in str(error.value)] == []


def test_a_file_that_is_missing_or_holds_no_settings_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        read_settings(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list\.yaml.*\[1, 2\]"):
        read_settings(tmp_path / "list.yaml")


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{level}: &a{level} [{', '.join(9 * [f'*a{level - 1}'])}]\n" for level in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 5000, "more than 100 levels"),
        (BOMB, "with its aliases it holds more than 100000 values"),
        ("a: &a [*a]", "aliases"),
        ("seed: 1\nseed: 2", r"each key appears once.*'seed'"),
        ("a: {b: 1, b: 1}", r"each key appears once.*'b'"),
        ("{1: a, 01: b}", r"each key appears once.*\[1\]"),
        ("{7: a, 0x7: b}", r"each key appears once.*\[7\]"),
        ("{yes: a, true: b}", r"each key appears once.*\[True\]"),
        ("a: 2021-99-99", "month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        (b"\xff\xfe\xfa", "unacceptable character"),
    ],
    ids=[
        *("deep", "bomb", "cycle", "repeated", "repeated inside", "octal", "hexadecimal", "true", "date", "code"),
        "bytes",
    ],
)
def test_yaml_that_cannot_be_used_is_refused_at_once(text, problem):
    with pytest.raises(ValueError, match=f"(?s)Cannot use run.yaml: it is not YAML; .*{problem}"):
        parse_yaml(text, "run.yaml")


def test_aliases_and_merged_keys_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a", "here") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }
    assert parse_yaml("{1: a, '1': b, 1.5: c}", "here") == {1: "a", "1": "b", 1.5: "c"}
