"""What a session shows where the name of a result is typed: one line, whatever it holds."""

import detjac_lanczos as dl
from detjac_lanczos.runs import Claim, Verification
from tests.tiny_llama import PROMPT


def test_reprs_are_one_line(tiny: dl.LoadedModel, run: dl.Run) -> None:
    network = dl.detach(tiny, PROMPT)
    every = [part(block) for part in (dl.attention, dl.mlp) for block in range(3)]
    bare = network.replace(drop=every)
    J, token = network.jacobian(0), run.tokens[0]
    triplets = dl.analyze(tiny, PROMPT, k=64, tokens=0).tokens[0]
    long = dl.Run(run.record | {"model": "m", "prompts": ["word\n" * 99, *"abcde", None]}, run.vectors)
    shown = {
        repr(run): f"prompts=[{PROMPT!r}], k=4, tokens=6)",
        repr(long): r"model='m', prompts=['word\nword\nword\nword\nword\nword\nwo…, 'a', 'b', 'c' and 3 more], k=4, ",
        repr(tiny): f"LoadedModel(name={tiny.name!r}, fingerprint='",
        repr(network.streams): "Streams(positions=6, blocks=3, hidden size=64)",
        repr(network.plan): "in memory, under no budget, mixing={'keep': '0-2'}, gates={'keep': '0-2'})",
        repr(J.T): f"{J!r}.T",
        repr(token): "TokenResult(token 0 of prompt 0, 'the', S=[",
        repr(triplets): f", …, {triplets.S[-1]:.4g}], {triplets.certificate and triplets.certificate.line})",
        repr(dl.detach(tiny, input_ids=[[3]] * 9)): ", tokens=(1, 1, 1, 1 and 5 more), ",
        repr(bare): ", without attention.0, attention.1, attention.2, mlp.0 and 2 more)",
        repr(bare.jacobian(0)): ", without attention.0, attention.1, attention.2, mlp.0 and 2 more, ",
        repr(token.left[0]): f"DecodedVector(['{token.left[0].decoded[0][0]}', ",
        repr(dl.plan(tiny.name, 10, device="h100")): "tokens=10, NVIDIA H100 SXM 80 GB, peak ",
    }
    for line, part in shown.items():
        assert part in line and "\n" not in line and len(line) < 300


def test_a_verification_says_how_many_claims_hold() -> None:
    claims = [Claim("one", 1.0, 1.0, 1.0), Claim("other", 1.0, 2.0, 1.0)]
    assert repr(Verification(claims, (), ())) == "Verification(1 of 2 claims hold)"
