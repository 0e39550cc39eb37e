"""Tables of metrics as they are read; `test_writers.py` has those that are written."""

import numpy as np
import pytest

from jaxgen.training.tables import Table, read_rows


def test_rows_of_a_run_that_goes_on(tmp_path):
    """Empty cells are no values, and half a row is none."""
    path = tmp_path / "metrics.csv"
    assert read_rows(path) == []
    path.write_text("step,loss,error\n2,0.5,\n4,nan,1\n6,0.2")
    table = read_rows(path)
    assert table[0] == {"step": 2.0, "loss": 0.5}
    assert table.columns == ("step", "loss", "error")
    np.testing.assert_array_equal(table.column("step"), [2, 4])
    np.testing.assert_array_equal(table.column("error"), [np.nan, 1])
    with pytest.raises(ValueError, match="name must be one of step, loss, error, got 'x'"):
        table.column("x")


def test_what_a_notebook_shows_of_many_rows():
    page = Table({"step": float(i), "a<b": 0.5} for i in range(30))._repr_html_()
    assert "a&lt;b" in page
    assert page.count("<tr>") == 1 + 5 + 1 + 5
    assert "<td>4</td>" in page
    assert "<td>25</td>" in page
    assert "<td>5</td>" not in page
    short = Table({"step": float(i)} for i in range(7))._repr_html_()
    assert short.count("<tr>") == 1 + 7
    assert "…" not in short


@pytest.mark.parametrize("content", ["step,loss\n2,x\n", "step\n2,3\n", "loss\n2\n", "a\n\xff\n"])
def test_files_that_are_no_tables(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"metrics\.csv (cannot be read as a table|has a row)"):
        read_rows(path)
