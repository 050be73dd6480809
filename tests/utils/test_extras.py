import json

import pytest

from transformers_sem.utils.errors import plain_errors
from transformers_sem.utils.extras import MissingExtraError, require


def test_an_installed_package_is_imported():
    assert require("json", extra="train") is json


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(MissingExtraError, match=r"'no_such_package'.*pip install 'transformers-sem\[train\]'"):
        require("no_such_package.inside", extra="train")


def test_a_missing_package_is_one_line():
    with pytest.raises(SystemExit, match=r"^error: The package 'no_such_package'.*$"), plain_errors():
        require("no_such_package", extra="demo")


def test_defects_of_an_import_keep_their_traceback():
    with pytest.raises(ModuleNotFoundError), plain_errors():
        import no_such_package  # noqa: F401
