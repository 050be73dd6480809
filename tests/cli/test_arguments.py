import argparse

import pytest

from transformers_sem.cli.arguments import port_number


def test_a_port_has_sixteen_bits():
    assert [port_number(text) for text in ("1", "65535")] == [1, 65535]
    for text in ("0", "65536", "70000", "-1", "http"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"needed; got '{text}'"):
            port_number(text)
