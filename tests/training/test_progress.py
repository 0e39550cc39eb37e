"""What the console says of a run fits it, the time left first."""

import io

import pytest
from rich.console import Console

from jaxgen.training.progress import Progress

GAN = {"x": 1.0, "discriminator/loss": 0.25, "generator/loss": 2.0}


def console(terminal, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width)


def test_plain_progress_prints_whole_lines_now_and_then():
    out = console(False)
    with Progress(1000, unit="images", console=out, plain_seconds=3600.0) as progress:
        for step in range(100, 1100, 100):
            progress.update(step, {"x": 1.0, "d/loss": 0.25, "g/loss": 2.0}, 12.3456, 1580.25)
        progress.busy("compiling, then drawing samples")
        progress.busy("drawing samples", plainly=False)
        progress.note("a [note] " + "that is long " * 20)
    lines = out.file.getvalue().splitlines()
    assert lines[0] == (
        "0:01:13 left, step 100/1,000, d/loss 0.25, g/loss 2, 12.35 steps/s, 1,580 images/s"
    )
    assert lines[1].startswith("0:00:00 left, step 1,000/1,000")
    assert lines[2] == "compiling, then drawing samples"
    assert lines[3] == "a [note] " + "that is long " * 20
    assert len(lines) == 4


def test_plain_progress_without_a_rate_or_a_loss():
    out = console(False)
    progress = Progress(10, console=out, plain_seconds=0.0)
    progress.update(1, {}, 0.0, 0.0)
    progress.update(2, {"accuracy": 0.5}, 0.0, 0.0)
    assert out.file.getvalue().splitlines() == ["step 1/10", "step 2/10, accuracy 0.5"]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [120, 80, 60, 40, 20])
def test_a_line_fits_its_console(width, terminal):
    """Whole parts are left out, the rates first; the time left stays."""
    out = console(terminal, width)
    progress = Progress(800_000, unit="images", console=out, plain_seconds=0.0)
    progress.update(12_345, GAN, 12.3456, 1580.25)
    if terminal:
        out.print(progress._bar.get_renderable())
    (line,) = out.file.getvalue().splitlines()
    plain = line if not terminal else progress._bar.tasks[0].description
    assert len(plain) + progress._room <= width
    assert plain.startswith("17:43:20 left")
    assert "\u2026" not in line
    assert ("step 12,345/800,000" in plain) == (width > 20)
    assert ("discriminator/loss 0.25" in plain) == (width >= 60)
    assert ("generator/loss 2" in plain) == (width >= 80)
    assert ("images/s" in plain) == (width == 120 and not terminal)


def test_live_progress_on_a_terminal():
    out = console(True)
    with Progress(1000, unit="images", console=out) as progress:
        progress.busy("compiling the step")
        (bar,) = progress._bar.tasks
        assert bar.description == "compiling the step"
        progress.update(500, {"loss": 0.5}, 10.0, 80.0)
        assert bar.percentage == 50
        progress.note("resumed at 500")  # in one piece: no colours for numbers
    text = out.file.getvalue()
    assert "0:00:50 left, step 500/1,000, loss 0.5, 10 steps/s, 80 images/s" in text
    assert "resumed at 500" in text
    assert "\x1b[?25h" in text  # the cursor is back


def test_a_pipe_is_no_terminal(monkeypatch, capsys):
    """Whatever is said of colours, as notebooks do: no codes of a live line come through it."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress(10) as progress:
        progress.update(10, {"loss": 0.5}, 1.0, 2.0)
    line = "0:00:00 left, step 10/10, loss 0.5, 1 steps/s, 2 examples/s\n"
    assert capsys.readouterr().out == line
