"""The page is whole HTML, holds no script and no address, and shows every token as text."""

import ast
import copy
import itertools
import re
import subprocess
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from detjac_lanczos.cli.parser import make_parser
from detjac_lanczos.frozen.places import Place, attention, layer, mlp, probe
from detjac_lanczos.reading import render_page
from detjac_lanczos.reading.page.charts import Axis, beside, log_range, scatter, spectra, spectrum
from detjac_lanczos.reading.page.markup import dotted, text
from detjac_lanczos.reading.page.repeat import command_line, python_call
from detjac_lanczos.reading.page.token_card import reading_cells, token_card
from detjac_lanczos.reading.record_values import percent, scientific
from detjac_lanczos.reading.visible import columns
from detjac_lanczos.runs import Run, analyze
from tests import tiny_models
from tests.reading.conftest import ODD_TOKENS
from tests.tiny_models.dense import DENSE

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(run: Run, **changes: Any) -> Reader:
    """Return the page of a run, read; with parts of its record changed."""
    reader = Reader()
    reader.feed(render_page(run.record | changes, run.vectors))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def page(odd_record: dict[str, Any], run: Run) -> Reader:
    return read(Run(odd_record, run.vectors))


def test_every_element_is_closed_and_every_link_has_its_target(page: Reader) -> None:
    links = [value for name, value in page.attributes if name == "href"]
    assert links and all(link.startswith("#") and link[1:] in page.ids for link in links)
    assert len(set(page.ids)) == len(page.ids) == len(ODD_TOKENS)


def test_nothing_runs_and_nothing_is_fetched(page: Reader, odd_record: dict[str, Any], run: Run) -> None:
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name, _ in page.attributes)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert not re.search(r"url\(|@import|https?://", render_page(odd_record, run.vectors))


def test_every_token_is_there_as_text(page: Reader) -> None:
    for token in ODD_TOKENS:
        assert dotted(token) in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", page.text)


def test_unfinished_solves_say_so(page: Reader) -> None:
    assert "raise max_products" in page.text
    assert "! not finite" in page.text
    assert f"{len(ODD_TOKENS) - 2} of {len(ODD_TOKENS)}" in page.text


def test_values_are_those_of_the_record(run: Run) -> None:
    said = read(run).text
    for token in run.record["tokens"]:
        assert f"{token['singular_values'][0]:#.4g}" in said
        assert token["certificate"]["line"] in said
    assert run.record["fingerprint"] in said


def test_an_earlier_position_heads_the_page_with_the_text_up_to_it(run: Run) -> None:
    record = run.record | {"options": run.record["options"] | {"position": 1}}
    record |= {"prompts": ["one two three"], "prompt_tokens": [["<s>", "one", " two", " three"]]}
    page = render_page(record, run.vectors)
    assert "<h1><bdi>one</bdi></h1>" in page and "<title>one · detached" in page
    assert 'class="next"' not in page and 'class="next"' in render_page(run.record, run.vectors)
    said = read(Run(record, run.vectors)).text
    assert "Next token after the whole prompt" in said
    assert "What the model says next after the whole prompt" in said
    assert "adds to the output at token 1, one, ‖J x‖" in said
    assert "whole prompt" not in read(run).text


def test_a_share_that_was_not_measured_has_no_bar(run: Run) -> None:
    bare = [token | {"contribution": None} for token in run.record["tokens"]]
    for tokens, bars in ((run.record["tokens"], len(bare)), (bare, 0)):
        chips = render_page(run.record | {"tokens": tokens}, run.vectors).split('class="chips"')[1].split("</ol>")[0]
        assert chips.count('class="meter"') == bars


def test_the_energy_that_triplets_hold_is_in_their_card(run: Run) -> None:
    tokens = [token | {"energy": [0.905, 0.931]} for token in run.record["tokens"]]
    assert "Held by these 490.5 % to 93.1 % of |J|²" in read(run, tokens=tokens).text


def test_the_error_against_what_the_model_returns_and_the_noise_floor_are_told(run: Run) -> None:
    errors = run.record["reconstructions"][0] | {"model_relative_error": 3e-3}
    tokens = [token | {"floor": 2.5e-6} for token in run.record["tokens"]]
    said = read(run, reconstructions=[errors], tokens=tokens).text
    assert f"with its own roundings, to {scientific(3e-3)}." in said
    assert said.count(f"Noise floor c ε σ₁ √passes{scientific(2.5e-6)}") == len(tokens)
    errors |= {"model_relative_error": None}
    tokens = [token | {"floor": 0.0} for token in tokens]
    said = read(run, reconstructions=[errors], tokens=tokens).text
    assert "roundings" not in said and "Noise floor" not in said


def test_the_offset_is_named_where_there_is_one(run: Run, biased_run: Run) -> None:
    plain, biased = read(run).text, read(biased_run).text
    assert "offset" not in plain and "Detached: the sum over tokens of J x gives the output to" in plain
    assert "Detached: the offset r plus the sum over tokens of J x gives the output to" in biased
    assert "Ordinary Jacobians, whose sum has no offset, miss it by" in biased
    share = percent(biased_run.record["reconstruction"]["offset_share"]).replace(" ", "\u00a0")
    assert f"The offset is {share} of the output" in biased


HEAD = "through the head, with the sign that agrees with the {}; the figure is the share of softmax"
TARGETS: dict[str, tuple[str | Place, str, str]] = {
    "output": ("output", "output", HEAD),
    "residual": (
        "residual",
        "residual stream before the final norm",
        f"pass the frozen final norm and are read {HEAD}",
    ),
    "layer": (layer(1), "residual stream after block 1", f"pass the frozen final norm and are read {HEAD}"),
    "attention": (attention(1), "attention branch of block 1", f"pass the frozen final norm and are read {HEAD}"),
    "mlp": (mlp(1), "MLP branch of block 1", f"pass the frozen final norm and are read {HEAD}"),
    "logits": ("logits", "logits", "are logits, with the sign that agrees with the {}"),
    "probe": (
        probe(torch.eye(24)[:3]),
        "output along the probe's rows",
        "the {}; the figure is the square of an entry",
    ),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_the_page_says_what_the_map_gives_and_how_its_left_vectors_are_read(kind: str) -> None:
    target, name, note = TARGETS[kind]
    loaded = tiny_models.loaded(tiny_models.llama(torch.float32))
    said = read(analyze(loaded, input_ids=tiny_models.prompt_ids(3), k=2, target=target)).text
    assert f"The linear map gives the {name}" in said and f"gives the {name} to" in said
    assert f"{name}, entry of y" in said and f"what it adds to the {name}" in said
    assert note.format(name) in said
    assert ("share of softmax" in said) == (kind != "probe")
    assert ("make the model say" in said) == (kind in ("output", "logits"))


def test_the_page_says_what_is_frozen_and_what_the_stream_passes(run: Run) -> None:
    plain = tiny_models.loaded(DENSE["OPT plain"](torch.float32))
    said = read(analyze(plain, input_ids=tiny_models.prompt_ids(3), k=2, tokens=[0], target="residual")).text
    assert "1/std of every layer norm" in said and "the ratio act(z)/z of every MLP without a gate" in said
    assert "1/rms" not in said and "final norm" not in said
    assert "residual stream after the last block, entry of y" in said
    projected = tiny_models.loaded(DENSE["OPT post-norm"](torch.float32))
    said = read(analyze(projected, input_ids=tiny_models.prompt_ids(3), k=2, tokens=[0], target=layer(1))).text
    assert "pass the output projection and are read through the head" in said
    assert "act(gate x) of every gated MLP" in read(run).text


def test_the_python_call_repeats_the_run(run: Run) -> None:
    call = ast.parse(python_call(run.record)).body[1]
    assert isinstance(call, ast.Assign) and isinstance(call.value, ast.Call)
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.value.keywords}
    assert options == {"k": 4, "dtype": "float32", "input_ids": [list(ids) for ids in run.record["token_ids"]]}
    assert ast.unparse(call.value.args[0]) == "(model, tokenizer)"
    of_text = python_call(run.record | {"prompts": ["the bridge"]})
    assert "prompt='the bridge'" in ast.unparse(ast.parse(of_text))


def _said(record: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the options of the call of `analyze` and of `load_model` in it, as they are written."""
    call = ast.parse(python_call(record)).body[-2]
    assert isinstance(call, ast.Assign) and isinstance(call.value, ast.Call)
    inner = call.value.args[0]
    calls = (call.value.keywords, inner.keywords if isinstance(inner, ast.Call) else [])
    outer, loading = ({str(k.arg): ast.unparse(k.value) for k in keywords} for keywords in calls)
    return outer, loading


def test_the_python_call_says_how_the_model_was_loaded_and_what_was_chosen(run: Run) -> None:
    record = dict(run.record) | {"live": False, "device": "cuda:0", "quantization": "nf4", "freeze": "half"}
    record |= {"position_ids": [[3, 4]], "options": run.record["options"] | {"tokens": [[0, 1], [0, 3]]}}
    outer, loading = _said(record)
    assert loading == {"dtype": "'float32'", "quantization": "'nf4'", "device": "'cuda:0'"}
    chosen = {"freeze": "'half'", "position_ids": "[[3, 4]]", "tokens": "[(0, 1), (0, 3)]"}
    assert chosen.items() <= outer.items()
    assert "device" not in _said(record | {"loading": {"device_map": "auto"}})[1]
    embedded = record | {"prompts": [None, None], "token_ids": [[], []]}
    assert _said(embedded)[0]["inputs_embeds"] == "[stored['embeds.0'], stored['embeds.1']]"
    assert "input_ids" not in _said(embedded)[0]


COMMANDS = (
    (),
    ("--source", "layer(1)", "--target", "mlp(2)", "--position=-2", "--chat", "--block", "3", "--freeze", "half"),
    ("--certify", "none", "--seed", "7", "--method", "shared_basis", "--polish", "3", "--memory", "2000000"),
    ("--threshold", "0.5", "--delta", "0.001", "--certify", "complete", "--max-products", "90", "--tokens", "0,4"),
    ("--energy", "0.9", "--device", "cuda:0", "--quantization", "nf4", "--tokens=-1,0"),
)


@pytest.mark.parametrize("options", COMMANDS)
@pytest.mark.parametrize("prompts", [("it's $HOME; rm",), ("a\nb\t\\ \x07\u202e'!", "-5 °C", "金門")])
def test_the_command_says_the_whole_run_again(run: Run, prompts: tuple[str, ...], options: tuple[str, ...]) -> None:
    """A shell takes the words apart and the command's own parser reads them: it asks for what was asked for."""
    parser = make_parser()
    asked = parser.parse_args(["svd", "--model", "a folder/model", *options, "--", *prompts])
    lengths = range(6, 6 + len(prompts))
    tokens = [[i, t % n] for i, n in enumerate(lengths) for t in asked.tokens] if asked.tokens else None
    record = dict(run.record) | {"prompts": list(prompts), "token_ids": [[0] * n for n in lengths], "live": False}
    record |= {name: getattr(asked, name) for name in ("model", "freeze", "quantization")}
    record |= {"dtype": "float64", "device": asked.device or "cpu"}
    record["options"] = {name: getattr(asked, name, old) for name, old in run.record["options"].items()}
    k = None if asked.threshold or asked.energy else asked.k or 8
    absent = {name: None for name in ("certify", "polish") if getattr(asked, name) == "none"}
    record["options"] |= {"k": k, "tokens": tokens} | absent
    shell = ["bash", "-c", f"printf '%s\\0' {command_line(record)}"]
    words = subprocess.run(shell, capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    assert words[0] == "detjac"
    again = parser.parse_args(words[1:])
    same = asked.tokens and [token % lengths[0] for token in asked.tokens] if len(prompts) == 1 else asked.tokens
    assert vars(again) == vars(asked) | {"dtype": "float64", "k": k, "tokens": same}


def test_what_no_command_can_say_is_said_in_python(run: Run) -> None:
    record = dict(run.record) | {"prompts": ["the bridge"], "live": False}
    assert command_line(record) is not None
    for changes in ({"live": True}, {"prompts": [None]}, {"prompts": ["a\0b"]}, {"position_ids": [[3]]}):
        assert command_line(record | changes) is None
    for options in ({"add_special_tokens": False}, {"target": "probe(3 rows)"}):
        assert command_line(record | {"options": record["options"] | options}) is None
    loading = {"revision": "v2", "device_map": {"": "cpu"}, "trust_remote_code": True, "commit": "abc"}
    assert command_line(record | {"loading": loading}) is None
    call = python_call(record | {"loading": loading})
    said = "revision='v2', device_map={'': 'cpu'}, trust_remote_code=True)"
    assert f"dl.load_model({record['model']!r}, dtype='float32', {said}" in call
    call = python_call(record | {"options": record["options"] | {"target": "probe(3 rows)", "source": "layer(1)"}})
    assert "stored = dl.load_run(" in call and "target=dl.probe(stored['probe'])" in call
    assert "source=dl.layer(1)" in call


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-25.5, 6.1), (0.0, 1e-3), (-0.3, 1.9), (-8.0, 2.0), (0.31, 0.69)])
def test_axes_have_a_few_round_ticks_inside(low: float, high: float, log: bool) -> None:
    ticks = Axis(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 12
    assert all(-1e-6 <= Axis(low, high, 0, 100, log)(tick) <= 100 + 1e-6 for tick in ticks)
    assert not log or high - low < 1 or all(float(f"{tick:.1g}") == pytest.approx(tick, rel=1e-9) for tick in ticks)


@pytest.mark.parametrize("width", [760.0, 360.0])
@pytest.mark.parametrize("k", [1, 8, 64])
def test_spectra_stay_inside_their_width(width: float, k: int) -> None:
    """Letters are 12 pixels high and at most 8 wide; a wide one of East Asia takes two."""
    lines = [
        (f"{i} {token}", [1 / (i + j + 1) for j in range(k)]) for i, token in enumerate(("a" * 40, "橋" * 20, "b"))
    ]
    svg = spectra(lines, "", width)
    ticks = [float(x) for x in re.findall(r'class="mid" x="([\d.]+)"', svg)]
    assert len(ticks) >= 1 and all(right - left >= 24 for left, right in itertools.pairwise(ticks))
    labels = re.findall(r'<text x="([\d.]+)" y="[\d.]+">([^<]*)</text>', svg)
    assert len(labels) == 3
    assert all(float(x) + 7 * columns(label) <= width for x, label in labels)
    points = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg)]
    assert max(points) <= width - 100 + 0.05


def test_a_large_scatter_is_thinned_and_keeps_its_ends() -> None:
    truth = torch.linspace(-1, 1, 50_000).tolist()
    svg = scatter(truth, [("dot", truth)], ("", ""), "")
    assert svg.count("h0") == 2000
    x = Axis(-1.08, 1.08, beside(Axis(-1.08, 1.08, 0, 1)), 542)
    assert f"M{x(-1):.1f} " in svg and f"M{x(1):.1f} " in svg


def test_a_larger_estimate_is_higher_up_and_a_larger_truth_further_right() -> None:
    svg = scatter([0.0, 1.0], [("dot", [0.5, 0.75])], ("", ""), "")
    (left, low), (right, high) = ((float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", svg))
    assert left < right and high < low
    y = Axis(-0.04, 1.04, 0.75 * 552 - 44, 10)
    x = Axis(-0.04, 1.04, beside(y), 542)
    assert (left, right) == (pytest.approx(x(0.0), abs=0.06), pytest.approx(x(1.0), abs=0.06))
    assert (low, high) == (pytest.approx(y(0.5), abs=0.06), pytest.approx(y(0.75), abs=0.06))


@pytest.mark.parametrize("width", [552.0, 360.0])
@pytest.mark.parametrize("value", [-3.29449, 0.306287, -2.99959, -12345.678, 4e-7, 0.0])
def test_values_that_are_nearly_equal_keep_ticks_that_differ(value: float, width: float) -> None:
    """A digit is 7 wide; the only point of a single entry lies in the middle."""
    svg = scatter([value], [("dot", [value * (1 + 1e-15)])], ("", ""), "", width)
    (at, height) = next((float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", svg))
    ends = [float(x) for x in re.findall(r'class="axis" d="M([\d.]+) [\d.]+H([\d.]+)', svg)[0]]
    assert at == pytest.approx(sum(ends) / 2, abs=0.2) and 100 < height < width
    down, across = (re.findall(rf'class="{kind}" x="([\d.]+)" [^>]*>([^<]*)<', svg) for kind in ("end", "mid"))
    assert all(len({label for _, label in labels}) == len(labels) >= 2 for labels in (down, across))
    assert all(float(x) + 7 * len(label) / 2 <= width for x, label in across)
    for (left, one), (right, other) in itertools.pairwise(across):
        assert float(right) - float(left) >= 7 * max(len(one), len(other))


def test_the_error_of_a_single_entry_is_labelled_as_that_of_its_norm(run: Run) -> None:
    pages = [
        render_page(run.record | {"options": run.record["options"] | {"target": target}}, run.vectors)
        for target in ("probe(1 rows)", "probe(11 rows)")
    ]
    assert ["std(ŷ − y) / std(y)" in page for page in pages] == [False, True]
    assert ["<small>‖ŷ − y‖ / ‖y‖</small>" in page for page in pages] == [True, False]


def test_recorded_choices_leave_out_what_nothing_was_chosen_for(run: Run) -> None:
    solver = {"method": "shared_basis", "polish": {"method": "lanczos", "block": 3}}
    for gemm, told in (({}, ""), ({"8 x 8": "torch"}, " · gemm: 8 x 8 torch")):
        page = render_page(run.record | {"choices": {"solver": solver, "gemm": gemm}}, run.vectors)
        said = f"solver: method shared_basis, polish method lanczos, block 3{told}"
        assert f"<dt>Recorded choices</dt><dd>{said}</dd>" in page


def test_values_that_are_zero_all_but_leave_a_chart_alone() -> None:
    low, high = log_range([1.0, 1e-30, 0.0])
    assert high - low <= 12 * 1.12 + 1e-9 and low < high - 11
    heights = re.findall(r'cy="(-?[\d.]+)"', spectrum([1.0, 0.0], log_range([1.0]), ""))
    assert len(heights) == 2 and all(0 <= float(height) <= 190 for height in heights)


def test_values_of_zero_alone_have_no_axis(run: Run) -> None:
    """Of one token, its card has none; of all, the page has none: a range of zeros would be invented."""
    zeros = [token | {"singular_values": [0.0] * 4} for token in run.record["tokens"]]
    one = render_page(run.record | {"tokens": [*run.record["tokens"][:-1], zeros[-1]]}, run.vectors)
    every = render_page(run.record | {"tokens": zeros}, run.vectors)
    said = "<p>No singular value above 0 was found.</p>"
    assert [page.count(said) for page in (one, every)] == [1, len(zeros) + 1]
    assert [len(re.findall('aria-label="Singular values', page)) for page in (one, every)] == [len(zeros) + 1, 0]


def test_values_under_a_scale_lie_on_its_axis() -> None:
    """A value of rounding, or zero, ends where the axis is: no line runs through its name."""
    drawn = spectra([("a", [6.9, 2e-15, 0.0])], ""), spectrum([6.9, 2e-15, 0.0], log_range([6.9, 1.0]), "")
    for svg in drawn:
        axis = float(re.findall(r'class="axis" d="M[\d.]+ ([\d.]+)H', svg)[0])
        first, *small = (float(height) for height in re.findall(r'cy="(-?[\d.]+)"', svg))
        assert first < axis - 50 and small == pytest.approx([axis, axis], abs=20) and max(small) <= axis


@pytest.mark.parametrize("least", [1.0, 1e-4, 2e-5, 1e-11])
def test_the_name_of_an_axis_is_beside_its_ticks(least: float) -> None:
    """Letters are 12 pixels high, and a digit 7 wide."""
    svg = spectra([("a", [9.0, least])], "")
    ticks = [float(x) - 7 * len(label) for x, label in re.findall(r'class="end" x="([\d.]+)" y="[\d.]+">([^<]+)<', svg)]
    name = float(re.findall(r"translate\(([\d.]+) ", svg)[0])
    assert min(ticks) >= name + 6


def test_lines_that_end_together_begin_at_the_first_index_and_have_names_apart() -> None:
    svg = spectra([("one", [3.0, 1.0]), ("two", [3.0, 1.0]), ("three", [2.0, 1.0])], "")
    names = sorted(float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)">[a-z]+<', svg))
    assert len(names) == 3 and all(below - above >= 14.9 for above, below in itertools.pairwise(names))
    paths, dots = (
        re.findall(r'<path d="M([\d.]+ [\d.]+)L', svg.replace(" L", "L")),
        re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg),
    )
    assert paths == [" ".join(dot) for dot in dots[::2]]
    assert float(dots[0][0]) < float(dots[1][0])


def test_names_of_lines_that_end_at_the_top_stay_below_it() -> None:
    svg = spectra([*((str(i), [3.0, 3.0]) for i in range(8)), ("last", [3.0, 0.1])], "")
    names = sorted(float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)">(?:\d|last)<', svg))
    assert len(names) == 9 and names[0] >= 14 and names[-1] <= 304
    assert all(below - above >= 14.9 for above, below in itertools.pairwise(names))


def test_a_text_may_stand_in_an_attribute() -> None:
    assert not set(text("\"'<>")) & set("\"'<>")


def known_token(run: Run) -> dict[str, Any]:
    """A token of which every figure is another one."""
    sides: dict[str, Any] = {
        side: [
            [
                {"token": f"{side}{j}", "id": 1, "score": 0.5, "logit": None},
                {"token": "second", "id": 2, "score": 0.25, "logit": None},
            ]
            for j in range(2)
        ]
        for side in ("left", "right")
    }
    known = {"singular_values": [4.0, 2.0], "residuals": [[0.0, 0.04], [0.0, 0.0]], "floor": 1e-9}
    known |= {"stable_rank": 2.5, "stable_rank_interval": [2.0, 3.0], "status": "converged"}
    known |= {"contribution": {"share": 0.6, "cosine": -0.25, "captured": 0.8}}
    return run.record["tokens"][0] | sides | known


def test_a_card_has_each_figure_in_its_place(run: Run) -> None:
    card = token_card(known_token(run), (0.0, 1.0))
    rows = re.findall(r'<tr role="row"><th scope="row".*?</tr>', card)
    said = [re.sub(r"<[^>]*>", "|", row) for row in rows]
    assert [re.findall(r"σ.|left\d|right\d|[\d.]+ %|0\.\d\d\b", row) for row in said] == [
        ["σ₁", "left0", "50.0 %", "25.0 %", "right0", "0.50", "0.25"],
        ["σ₂", "left1", "50.0 %", "25.0 %", "right1", "0.50", "0.25"],
    ]
    assert rows[0].count("--w:100%") == rows[0].count("--w:50%") == 2
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", card))
    assert facts["Contribution ‖J x‖ / ‖y‖"] == "60.0 %"
    assert facts["Cosine of J x with y"] == "-0.250"
    assert facts["Share of ‖J x‖² in these 2"] == "80.0 %"
    assert facts["Largest relative residual"] == "1.0\u00a0×\u00a010⁻²"
    assert facts["Stable rank ‖J‖²<sub>F</sub> / σ₁²"].endswith("[2.00, 3.00]</span>")
    (claim,) = re.findall(
        r'class="claim">(.*?)</p>', token_card(known_token(run) | {"certificate": {"line": "<b>"}}, (0, 1))
    )
    assert claim == "&lt;b&gt;"


def test_cells_of_a_token_read_its_leading_triplet(run: Run) -> None:
    cells = reading_cells(known_token(run))
    assert re.findall(r"left\d|right\d|second", cells) == ["left0", "second", "right0", "second"]
    assert "width:60.0%" in cells and "60.0 %" in cells


@pytest.fixture
def two_prompts(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record of two prompts whose figures differ, and its vectors."""
    record, vectors = dict(run.record), dict(run.vectors)
    first, second = known_token(run), run.record["tokens"][1]
    smaller = {"singular_values": [1.0, 0.5], "stable_rank": 1.25, "stable_rank_interval": [1.0, 1.5], "token": "small"}
    smaller |= {"contribution": {"share": 0.1, "cosine": 1.0, "captured": 0.9}, "residuals": [[0.0, 0.0]] * 2}
    both = [first | {"token": "large"}, second | {name: first[name] for name in ("left", "right")} | smaller]
    record["tokens"] = both + [token | {"prompt": 1} for token in both]
    record["tokens"][0] |= {"status": "breakdown_exact"}
    for name in ("prompts", "prompt_tokens", "predictions", "reconstructions", "token_ids"):
        record[name] = list(record[name]) * 2
    record["prompts"] = ["one", "two"]
    record["predictions"][1] = [
        {"token": "said", "probability": 0.5},
        {"token": "or", "probability": 0.25},
    ]
    errors = {"relative_error": 1e-3, "norm_error": 2e-3, "ordinary_relative_error": 0.75, "offset_share": 0.0}
    record["reconstructions"][1] = record["reconstructions"][0] | errors
    record["work"] = record["work"] | {"row_sweeps": 1000.0, "dense_row_sweeps": 4000.0}
    size = len(vectors["y.0"])
    vectors["y.1"] = torch.linspace(-5, 5, size)
    vectors["reconstruction.detached.1"], vectors["reconstruction.ordinary.1"] = (
        vectors["y.1"],
        torch.full((size,), 5.0),
    )
    return record, vectors


def test_a_page_of_two_prompts_has_each_figure_in_its_place(two_prompts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    page = render_page(*two_prompts)
    heading, _, second = page.split("<section><h2")[0], *page.split('<h2 class="prompt"><bdi>')[1:]
    assert second.startswith("two<")
    key = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?) <small>", heading))
    assert key["Work"] == "25 %" and key["Tokens certified"] == "4 of 4"
    bars = re.findall(r'class="tok">(\w+)</bdi></span><span class="meter".*?width:([\d.]+)%.*?num">([\d.]+ %)', second)
    assert bars == [("said", "100.0", "50.0 %"), ("or", "50.0", "25.0 %")]
    assert "to 1.0\u00a0×\u00a010⁻³, and" in second and "miss it by 75.0\u00a0%." in second
    facts = {name: re.sub(r"<[^>]*>", "", said) for name, said in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", second)}
    assert (facts["Largest σ₁"], facts["Smallest σ₁"]) == ("large #0 4.000", "small #1 1.000")
    assert (facts["Largest stable rank"], facts["Smallest stable rank"]) == ("large #0 2.50", "small #1 1.25")
    assert facts["Largest share of ‖J x‖² captured"] == "small #1 90.0 %"
    assert "1,000 row-sweeps against 4,000 for dense" in page


def test_a_prompt_of_which_no_token_was_chosen_says_so(two_prompts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    record, vectors = two_prompts
    record["tokens"] = [token for token in record["tokens"] if token["prompt"] == 1]
    first, second = render_page(record, vectors).split('<h2 class="prompt"><bdi>')[1:]
    assert "No token of this prompt was chosen." in first and "No token" not in second
    assert "Spectra" not in first and "Token by token" not in first and "Token by token" in second


def test_the_answer_to_a_chat_stands_apart_from_the_prompt(run: Run) -> None:
    record = copy.deepcopy(dict(run.record))
    record["predictions"][0][0]["token"] = "The"
    for chat, between in ((False, "</bdi><span"), (True, "</bdi> <span")):
        record["options"]["chat"] = chat
        assert between in render_page(record, run.vectors).split("</h1>")[0]


def test_estimates_are_drawn_against_the_output_of_their_own_prompt(
    two_prompts: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """Of the second prompt the detached ones lie on the diagonal, the ordinary ones all at the top."""
    svg = render_page(*two_prompts).split('<h2 class="prompt"><bdi>')[2].split("<svg")[1]
    _, x1, x2, y1, y2 = (
        0,
        *map(float, re.findall(r'diagonal" d="M([\d.]+) [\d.]+L([\d.]+)', svg)[0]),
        *map(float, re.findall(r'diagonal" d="M[\d.]+ ([\d.]+)L[\d.]+ ([\d.]+)', svg)[0]),
    )
    dots = re.findall(r"M([\d.]+) ([\d.]+)h0", svg)
    assert all((float(x) - x1) / (x2 - x1) == pytest.approx((float(y) - y1) / (y2 - y1), abs=1e-3) for x, y in dots)
    assert len({y for _, y in re.findall(r"M([\d.]+) ([\d.]+)l5 5", svg)}) == 1


@pytest.mark.parametrize(
    ("position", "words"),
    [(-1, "the last position of each prompt"), (-2, "position -2 of each prompt"), (1, "position")],
)
def test_the_position_is_told_as_it_was_asked_for(
    two_prompts: tuple[dict[str, Any], dict[str, Any]], position: int, words: str
) -> None:
    record, vectors = two_prompts
    page = render_page(record | {"options": record["options"] | {"position": position}}, vectors)
    (said,) = re.findall(r"<dt>Output y</dt><dd>.*?, ([^,]*)</dd>", page)
    assert said == (words if position < 0 else f"position {record['definition']['position']}")


def test_the_name_of_a_model_is_text(run: Run) -> None:
    page = read(run, model="<script>a</script>")
    assert "script" not in page.tags and "<script>a</script>" in page.text


def test_a_page_of_one_token_compares_it_with_nothing(run: Run) -> None:
    page = render_page(run.record | {"tokens": run.record["tokens"][:1]}, run.vectors)
    assert "Largest σ₁" not in page and "Smallest" not in page
    assert "<dt>σ₁</dt>" in page and "<dt>Stable rank</dt>" in page
    assert "first token (dark)" not in page and "Singular values of the token&#x27;s Jacobian" not in page
    assert "Singular values of the token's Jacobian." in page


def test_a_models_name_is_shown_as_it_is_written(run: Run) -> None:
    page = render_page(run.record | {"model": "Some/Name"}, run.vectors)
    assert '<p class="kicker"><span>Detached Jacobians</span> · Some/Name</p>' in page
    assert not re.search(r"\.kicker \{[^}]*uppercase", page)


def test_the_opening_names_the_source_where_it_is_not_the_embeddings() -> None:
    loaded = tiny_models.loaded(tiny_models.llama(torch.float32))
    later = analyze(loaded, input_ids=tiny_models.prompt_ids(3), k=2, source=layer(-2))
    page = render_page(later.record, later.vectors)
    assert "is a linear map of the residual stream entering block 1, token by token. These are" in page
    assert "which directions of that stream matter" in page and "each input token" not in page


def test_the_opening_says_nothing_of_the_source_where_it_is_the_embeddings(run: Run) -> None:
    page = render_page(run.record, run.vectors)
    assert "is a linear map of each input token. These are" in page and "which directions of a token matter" in page
