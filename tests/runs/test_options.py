"""An option of an analysis is known wherever options are listed: call, record, schema, and both ways to repeat it."""

import json
from inspect import signature
from typing import Any, get_args

import numpy as np
import pytest

from detjac_lanczos.cli.parser import make_parser
from detjac_lanczos.frozen.words import Freeze
from detjac_lanczos.operators import detach
from detjac_lanczos.reading.page import repeat
from detjac_lanczos.runs import Run, analyze
from detjac_lanczos.runs.schema import RECORD
from detjac_lanczos.runs.search_options import SearchOptions, search_from, search_record
from detjac_lanczos.solvers.options import CERTIFICATES, METHODS, check_options

WHAT_IS_RUN = {"model", "prompt", "input_ids", "inputs_embeds", "attention_mask", "position_ids"}
HOW_IT_IS_RUN = {"checkpoint", "callback"}
PARTS_OF_THE_RECORD = {"freeze", "dtype", "device", "quantization", "choices"}


def test_every_option_is_recorded_and_repeated(run: Run) -> None:
    defaults = {
        function: {name: parameter.default for name, parameter in signature(function).parameters.items()}
        for function in (analyze, detach)
    }
    asked = {name: defaults[detach].get(name, usual) for name, usual in defaults[analyze].items()}
    assert {defaults[analyze][name] for name in defaults[detach].keys() - {"model"}} == {None}
    options = asked.keys() - WHAT_IS_RUN - PARTS_OF_THE_RECORD - HOW_IT_IS_RUN
    assert run.record["options"].keys() == RECORD["options"].keys() == options
    assert {name: asked[name] for name in options - {"k", "tokens"}} == repeat._DEFAULTS
    typed = vars(make_parser().parse_args(["svd", "a prompt"]))
    assert typed["delta"] is None, "or it does not show that one was given"
    for name in options - {"add_special_tokens", "delta"}:
        assert (None if typed[name] == "none" else typed[name]) == asked[name], name


def test_what_is_recorded_of_a_search_asks_for_it_again() -> None:
    asked = SearchOptions(
        threshold=0.5,
        energy=0.25,
        tol=0.01,
        method="lanczos",
        block=2,
        max_products=30,
        seed=7,
        certify="complete",
        delta=0.1,
        callback=None,
    )
    recorded = search_record(4, 3, asked)
    assert (recorded["k"], recorded["polish"]) == (4, 3)
    assert search_from(recorded) == asked
    of_numpy: Any = {"threshold": np.float32(0.5), "energy": np.longdouble(0.25), "block": np.int64(2)}
    assert json.dumps(search_record(4, 3, {**asked, **of_numpy})) == json.dumps(recorded)
    assert asked.keys() | {"k"} == signature(check_options).parameters.keys()
    assert (recorded.keys() | {"callback"}) - {"polish"} == signature(check_options).parameters.keys()


@pytest.mark.parametrize(
    ("option", "words"), [("method", METHODS), ("certify", CERTIFICATES), ("freeze", get_args(Freeze))]
)
def test_every_word_that_an_option_takes_can_be_typed(option: str, words: tuple[Any, ...]) -> None:
    for word in words:
        typed = make_parser().parse_args(["svd", "a prompt", f"--{option}", str(word).lower()])
        assert getattr(typed, option) == str(word).lower()
