"""A run of a tiny Llama, and the same run with the worst tokens a vocabulary can hold."""

import copy
from typing import Any

import pytest
import torch

from detjac_lanczos.operators import DetachedNetwork, detach
from detjac_lanczos.runs import Run, analyze
from tests import tiny_models

ODD_TOKENS = (
    "<script>document.title='executed'</script>",
    "</style><img src=x onerror=\"document.title='executed'\">",
    "\"'>&amp;",
    "金門大橋",
    " الذهبية",
    "\u202eevil",
    "🌉",
    "\n\t ",
    "\x07\x1b[31m",
    "\ufffd",
    "\u0301",
    "",
    "$x^2$",
    "\ud800",
)


@pytest.fixture(scope="session")
def network() -> DetachedNetwork:
    """Return a float64 network without biases, of one prompt."""
    return detach(tiny_models.loaded(tiny_models.llama()), input_ids=tiny_models.prompt_ids(tiny_models.LENGTH))


@pytest.fixture(scope="session")
def run() -> Run:
    """Return a run over one prompt of as many tokens as there are odd ones."""
    loaded = tiny_models.loaded(tiny_models.llama(torch.float32))
    return analyze(loaded, input_ids=tiny_models.prompt_ids(len(ODD_TOKENS)), k=4)


@pytest.fixture(scope="session")
def biased_run() -> Run:
    """Return a run of a model with biases: its outputs have an offset."""
    loaded = tiny_models.loaded(tiny_models.llama(torch.float32, bias=True))
    return analyze(loaded, input_ids=tiny_models.prompt_ids(5), k=2)


@pytest.fixture
def odd_record(run: Run) -> dict[str, Any]:
    """Return the record of `run` with its tokens replaced, one solve out of budget and one refused."""
    record: dict[str, Any] = copy.deepcopy(dict(run.record))
    record["prompt_tokens"] = [list(ODD_TOKENS)]
    record["prompts"], record["prompt"] = ["".join(ODD_TOKENS)], "".join(ODD_TOKENS)
    for index, (token, odd) in enumerate(zip(record["tokens"], ODD_TOKENS, strict=True)):
        token["token"] = odd
        for side in ("left", "right"):
            for entries in token[side]:
                for entry, name in zip(entries, ODD_TOKENS[index:] + ODD_TOKENS, strict=False):
                    entry["token"] = name
    for candidates in (record["prediction"], *record["predictions"]):
        for candidate, odd in zip(candidates, ODD_TOKENS, strict=False):
            candidate["token"] = odd
    spent, refused = record["tokens"][5], record["tokens"][6]
    spent |= {"status": "budget", "advice": "stopped after 100 products; raise max_products"}
    refused |= {"status": "not_finite", "advice": "the operator gave a NaN; try float32", "certificate": None}
    refused |= {"singular_values": [None] * 4, "residuals": [[None, None]] * 4, "left": [], "right": []}
    refused |= {"stable_rank": None, "stable_rank_interval": None, "contribution": None}
    return record
