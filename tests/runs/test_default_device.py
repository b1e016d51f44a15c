"""Where the caller has new tensors made says nothing of where a model lies: the default device is not asked."""

import pytest
import torch

from detjac_lanczos.operators import detach, layer
from detjac_lanczos.runs import analyze, verify
from tests import tiny_models
from tests.tiny_models.dense import DENSE
from tests.tiny_models.moe import MOE
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {
    "Llama": DENSE["Llama"],
    "softcapped": DENSE["Gemma 3 softcapped"],
    "projected": DENSE["OPT post-norm"],
    "scaled": DENSE["Granite"],
    "experts": next(iter(MOE.values())),
    "undeclared": UNDECLARED["StableLM"],
}
IDS = tiny_models.prompt_ids(5)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_default_device_changes_nothing(make) -> None:
    model = tiny_models.loaded(make(torch.float32))
    network, run = detach(model, input_ids=IDS), analyze(model, input_ids=IDS, k=2, method="lanczos")
    places = [{"target": "output"}, {"target": "logits"}, {"source": layer(1)}]
    expected = [network.jacobian(1, **place).dense() for place in places]
    with torch.device("meta"):
        assert torch.empty(1).is_meta
        for known in (network, detach(model, input_ids=IDS)):
            for place, dense in zip(places, expected, strict=True):
                assert torch.equal(known.jacobian(1, **place).dense(), dense)
        again = analyze(model, input_ids=IDS, k=2, method="lanczos", choices=run.record["choices"])
        assert [token.left for token in again.tokens] == [token.left for token in run.tokens]
        assert verify(run, model).ok
        analyze(model, input_ids=IDS, k=2, method="shared_basis", source=layer(1))


def test_the_default_device_changes_neither_padding_nor_plans() -> None:
    model = tiny_models.loaded(DENSE["Llama"](torch.float32))
    expected = detach(model, input_ids=IDS).jacobian(1).dense()
    padded, mask = [[0, *IDS[0]]], [[0, *[1] * len(IDS[0])]]
    with torch.device("meta"):
        for network in (
            detach(model, input_ids=padded, attention_mask=mask, position_ids=[[0, *range(5)]]),
            detach(model, input_ids=IDS, memory="64KiB"),
        ):
            torch.testing.assert_close(network.jacobian(1).dense(), expected)
