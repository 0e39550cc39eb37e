"""What `evaluate` says to people: each figure once, with its unit."""

import io

import pytest
from rich.console import Console

from jaxgen.training.summary import print_summary, summary_rows

PROTOCOL = {
    "data": "digits, split test",
    "num_examples": 297,
    "loss": "negative ELBO, nats an example",
    "kl": "to the prior, nats",
    "parameters": "average 'ema'",
    "seed": 3,
    "precision": "float32",
    "environment": {"devices": {"count": 2, "kind": "cpu"}},
}
RESULT = {
    "experiment": "experiments.vae_digits",
    "step": 3000,
    "loss": 93.2134,
    "standard_error": 0.5239,
    "kl": 12.34567,
    "negative_elbo": 93.21340001,
    "bits_per_dim": 2.1012,
    "active_units": 7,
    "likelihood": {
        "nats": 93.2134,
        "standard_error": 0.5239,
        "bits_per_dim": 2.1012,
        "num_examples": 297,
        "bound": "ELBO",
        "dequantization": "uniform",
        "given": "label",
        "data": "digits, split test",
    },
    "protocol": PROTOCOL,
}


def test_a_likelihood_comes_first_and_once():
    note = "nats an example, an upper bound (ELBO), uniform dequantization, given the label"
    assert summary_rows(RESULT) == [
        ("-log p(x)", "93.21 ± 0.52", note),
        ("", "2.1012", "bits per dimension"),
        ("kl", "12.346", "to the prior, nats"),
        ("active_units", "7", ""),
    ]


def test_without_a_likelihood_the_loss_is_what_the_protocol_says():
    result = {k: v for k, v in RESULT.items() if k not in ("likelihood", "standard_error")}
    assert summary_rows(result)[0] == ("loss", "93.213", "negative ELBO, nats an example")
    assert [row[0] for row in summary_rows(result)] == [
        "loss",
        "kl",
        "negative_elbo",
        "bits_per_dim",
        "active_units",
    ]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, None, "not finite"),
        (-1234.56, 12.3, "-1235 ± 12"),
        (0.123456, 0.00123, "0.1235 ± 0.0012"),
        (5.0, 0.0, "5"),
    ],
)
def test_digits_follow_the_error(value, error, text):
    likelihood = {**RESULT["likelihood"], "nats": value, "standard_error": error}
    likelihood |= {"bits_per_dim": None, "bound": "exact", "dequantization": "none", "given": None}
    row, *_ = summary_rows({**RESULT, "likelihood": likelihood})
    assert row == ("-log p(x)", text, "nats an example, exact")


def test_the_table_fits_eighty_columns():
    out = Console(file=io.StringIO(), width=80)
    print_summary(RESULT, kept="runs/x/evaluations.jsonl", console=out)
    text = out.file.getvalue()
    first, *rest = text.splitlines()
    assert first == "vae_digits, step 3,000, average 'ema'; 297 examples of digits, split test"
    assert rest[-1] == (
        "seed 3, float32, 2 x cpu; kept with its whole protocol in runs/x/evaluations.jsonl"
    )
    assert all(len(line) <= 80 for line in rest[:-1])
    assert text.count("93.21") == 1
