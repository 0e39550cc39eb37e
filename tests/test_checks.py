"""Checked choices."""

import pytest

from jaxgen.checks import check_choice, check_memory


def test_check_choice():
    check_choice("mode", "a", ("a", "b"))
    with pytest.raises(ValueError, match="mode must be one of a, b, got 'c'"):
        check_choice("mode", "c", ("a", "b"))


def test_memory():
    check_memory("a little", 1)
    with pytest.raises(
        ValueError, match=r"a lot would take 1024 GiB, and this machine has [\d.]+ GiB"
    ):
        check_memory("a lot", 2**40)
