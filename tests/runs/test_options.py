"""An option of an analysis is known wherever options are listed: call, record, schema, and both ways to repeat it."""

from inspect import signature

from detjac_lanczos.cli.parser import make_parser
from detjac_lanczos.reading.page import repeat
from detjac_lanczos.runs import Run, analyze
from detjac_lanczos.runs.schema import RECORD

WHAT_IS_RUN = {"model", "prompt", "input_ids", "inputs_embeds", "attention_mask", "position_ids"}
PARTS_OF_THE_RECORD = {"freeze", "dtype", "device", "choices"}


def test_every_option_is_recorded_and_repeated(run: Run) -> None:
    asked = {name: parameter.default for name, parameter in signature(analyze).parameters.items()}
    options = asked.keys() - WHAT_IS_RUN - PARTS_OF_THE_RECORD - {"callback"}
    assert run.record["options"].keys() == RECORD["options"].keys() == options
    assert {name: asked[name] for name in options - {"k", "tokens"}} == repeat._DEFAULTS
    typed = vars(make_parser().parse_args(["svd", "a prompt"]))
    for name in options - {"add_special_tokens"}:
        assert (None if typed[name] == "none" else typed[name]) == asked[name], name
