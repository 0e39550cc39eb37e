"""The distances' behaviour on the embedded digits, from the command line."""

import json

import pytest

from experiments.distances import describe, main
from jaxgen.metrics.report import Result


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("distances") / "table.md"
    assert main(["--out", str(path), "--num-samples=600"]) == 0
    return path.read_text()


@pytest.mark.slow
def test_every_series_moves_away_from_the_floor(table):
    """Fréchet and kernel distance rise with noise, blur, compression and missing classes."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line[:1] == "|"]
    head, rows = lines[0], {line[0]: line[1:] for line in lines[2:]}
    assert head[1:3] == ["FD-classifier", "KD-classifier mean"]
    series = {
        "noise": ["noise 0.02", "noise 0.05", "noise 0.1", "noise 0.2"],
        "blur": ["blur 0.5 pixels", "blur 1 pixels", "blur 2 pixels"],
        "JPEG": ["JPEG quality 50", "JPEG quality 20", "JPEG quality 5"],
        "classes": ["classes 5 of 10", "classes 2 of 10", "classes 1 of 10"],
    }
    assert set(rows) == {"unchanged", *(step for steps in series.values() for step in steps)}
    for column in (0, 1):
        for steps in series.values():
            values = [float(rows[step][column]) for step in ("unchanged", *steps)]
            assert values == sorted(values)
    # Blur loses what makes samples real, a lack of classes what makes them various.
    precision, recall = head.index("precision-classifier") - 1, head.index("recall-classifier") - 1
    assert float(rows["blur 2 pixels"][precision]) < 0.1
    assert float(rows["classes 1 of 10"][precision]) > 0.9
    assert float(rows["classes 1 of 10"][recall]) < 0.2
    assert "unchanged on: monotone" in table
    assert "split test (297 of 1797), content" in table
    assert ", the first 297, content" in table


def test_what_is_not_monotone_is_said():
    values = {("unchanged", ""): 1.0, ("noise", "a"): 3.0, ("noise", "b"): 2.0, ("blur", "a"): 2.0}
    protocol = {"samples": {"count": 9}, "seed": 1, "warnings": ["few"]}
    table, wrong = describe({k: Result({"FD": v}, protocol) for k, v in values.items()})
    assert wrong == ["noise"]
    assert "not monotone in FD: noise" in table
    assert json.dumps({"seed": 1}) in table
    assert "- few" in table
    values["noise", "a"] = float("nan")
    _, wrong = describe({k: Result({"FD": v}, protocol) for k, v in values.items()})
    assert wrong == ["noise"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-samples=5"], "must be at least 10, got 5"),
        (["--data=digit"], "did you mean 'digits'"),
        (["--out=table.txt"], "must end in .md"),
        (["--weights=x.pth"], "classifier trains its own"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
