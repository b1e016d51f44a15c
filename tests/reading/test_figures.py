"""Figures show the record's numbers; no token becomes a box or mathematics; without matplotlib the error says so."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import DetjacError, InputError
from detjac_lanczos.reading import (
    figures,
    fonts,
    plot_contributions,
    plot_reconstruction,
    plot_spectra,
    save_figures,
    sheet,
)
from detjac_lanczos.reading.record_values import percent
from detjac_lanczos.reading.visible import columns
from detjac_lanczos.runs import Run, analyze
from tests import tiny_models

pytest.importorskip("matplotlib")


def test_spectra_are_the_singular_values(run: Run) -> None:
    (axes,) = plot_spectra(run.record).axes
    assert axes.get_yscale() == "log"
    for line, token in zip(axes.get_lines(), run.record["tokens"], strict=True):
        np.testing.assert_array_equal(np.asarray(line.get_ydata()), token["singular_values"])
        assert list(line.get_xdata()) == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def survey() -> Run:
    return analyze(
        tiny_models.loaded(tiny_models.llama()),
        input_ids=tiny_models.prompt_ids(12),
        k=3,
        method="shared_basis",
        polish=4,
    )


@pytest.mark.parametrize("left", [0, 8, 12])
def test_estimates_and_lower_bounds_of_a_survey_are_told_from_values(survey: Run, left: int) -> None:
    """As many of its tokens as are ``left`` as estimates, the others polished: none, some and all."""
    kinds = sorted(survey.record["tokens"], key=lambda token: str(token["status"] != "estimate"))
    tokens = {0: kinds[8:], 8: kinds, 12: kinds[:8]}[left]
    (axes,) = plot_spectra(survey.record | {"tokens": tokens}).axes
    lines = iter(axes.get_lines())
    for token in tokens:
        line = next(lines)
        values = np.asarray(line.get_ydata())
        np.testing.assert_array_equal(values[1:], token["singular_values"][1:])
        if token["status"] != "estimate":
            assert (line.get_linestyle(), line.get_markerfacecolor()) == ("-", line.get_color())
            assert values[0] == token["singular_values"][0]
            continue
        assert (line.get_linestyle(), line.get_markerfacecolor()) == ("--", "white")
        about = next(lines)
        assert (list(about.get_xdata()), about.get_marker()) == ([1], "D")
        assert list(about.get_ydata()) == [values[0]] == token["survey"]["values"][:1]
    assert next(lines, None) is None
    legend = axes.get_legend()
    told = [text.get_text() for text in legend.get_texts()] if legend else []
    surveyed = ["estimates of $\\sigma_1$ (surveyed)", "lower bounds (surveyed)"]
    assert told == {0: [], 8: ["polished", *surveyed], 12: surveyed}[left]


def test_spectra_of_one_value_have_one_tick(survey: Run) -> None:
    tokens = [token | {"singular_values": token["singular_values"][:1]} for token in survey.record["tokens"]]
    (axes,) = plot_spectra(survey.record | {"tokens": tokens}).axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["polished", "estimates of $\\sigma_1$ (surveyed)"]


@pytest.mark.parametrize(
    ("threshold", "values", "tokens", "told"),
    [
        (9.0, [], 2, "No singular value above 9 was found."),
        (None, [None, None], 2, "No singular values were found."),
        (None, [0.0, 0.0], 2, "No singular value above 0 was found."),
        (None, [], 0, "No token of this prompt was chosen."),
    ],
)
def test_where_there_are_no_values_a_sentence_says_so(
    run: Run, threshold: float | None, values: list[float | None], tokens: int, told: str
) -> None:
    bare = [token | {"singular_values": values, "contribution": None} for token in run.record["tokens"][:tokens]]
    record = run.record | {"tokens": bare, "options": run.record["options"] | {"threshold": threshold}}
    for figure, words in (
        (plot_spectra(record), told),
        (plot_contributions(record), "J x was measured of no token." if tokens else told),
    ):
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.texts] == [words] and not axes.axison


def test_reconstruction_lies_on_the_diagonal(run: Run) -> None:
    (axes,) = plot_reconstruction(run.record, run.vectors).axes
    lines = {str(line.get_label()).split()[0]: line for line in axes.get_lines()}
    detached, ordinary = lines["detached"], lines["ordinary"]
    truth = np.asarray(detached.get_xdata(), dtype=float)
    error = np.std(np.asarray(detached.get_ydata(), dtype=float) - truth) / np.std(truth)
    assert error == pytest.approx(run.record["reconstruction"]["relative_error"], rel=0.1)
    assert np.std(np.asarray(ordinary.get_ydata(), dtype=float) - truth) / np.std(truth) > 0.1


def test_reconstruction_names_the_offset_where_there_is_one(run: Run, biased_run: Run) -> None:
    (plain,), (biased,) = (plot_reconstruction(some.record, some.vectors).axes for some in (run, biased_run))
    assert (plain.get_ylabel(), biased.get_ylabel()) == (
        "sum over tokens of J x",
        "offset r plus the sum over tokens of J x",
    )
    labels = [[str(line.get_label()) for line in axes.get_lines()] for axes in (plain, biased)]
    assert [any("without r" in label for label in found) for found in labels] == [False, True]


def test_nothing_is_reconstructed_of_an_altered_network(run: Run) -> None:
    record = run.record | {"definition": run.record["definition"] | {"switched_off": ["mlp.1"]}}
    (axes,) = plot_reconstruction(record, run.vectors).axes
    told = "No reconstruction: y is the altered network's own, which no pass of the model gives."
    assert [text.get_text() for text in axes.texts] == [told] and not axes.axison and not axes.get_lines()


def test_a_single_entry_is_reconstructed_on_ticks_that_need_no_offset(run: Run) -> None:
    y = torch.tensor([-3.29449], dtype=torch.float64)
    vectors = {"y.0": y, "reconstruction.detached.0": y * (1 + 3e-15)}
    errors = run.record["reconstructions"][0] | {"ordinary_relative_error": None}
    figure = plot_reconstruction(run.record | {"reconstructions": [errors]}, vectors)
    figure.draw_without_rendering()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        assert len(set(labels)) == len(labels) >= 2 and not axis.get_offset_text().get_text()


def test_axes_name_the_target(run: Run) -> None:
    record = dict(run.record) | {"options": run.record["options"] | {"target": "mlp(1)"}}
    (points,), (bars,) = plot_reconstruction(record, run.vectors).axes, plot_contributions(record).axes
    assert points.get_xlabel() == "MLP branch of block 1, entry of y"
    assert bars.get_xlabel().startswith("length relative to the MLP branch of block 1")


def test_contributions_are_the_shares(run: Run) -> None:
    (axes,) = plot_contributions(run.record).axes
    shares = [token["contribution"]["share"] for token in run.record["tokens"]]
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths[: len(shares)] == pytest.approx(shares)
    captured = [token["contribution"]["captured"] for token in run.record["tokens"]]
    kept = [share * part**0.5 for share, part in zip(shares, captured, strict=True)]
    assert widths[len(shares) :] == pytest.approx(kept)
    assert min(captured) > 0 and max(captured) < 1
    assert [text.get_text() for text in axes.texts] == [percent(share) for share in shares]


def test_names_at_the_ends_of_lines_keep_apart_though_the_lines_meet(run: Run) -> None:
    """The last value of one is zero, which no log scale has a place for."""
    ends = [0.0, 1.0, 1.0, 1.001, 3.0]
    tokens = [token | {"singular_values": [5.0, end]} for token, end in zip(run.record["tokens"], ends, strict=False)]
    (axes,) = plot_spectra(run.record | {"tokens": tokens}).axes
    low, high = np.log10(axes.get_ylim())
    heights = sorted(float(np.log10(text.xy[1])) for text in axes.texts)  # type: ignore[attr-defined]
    assert len(heights) == len(ends)
    assert np.diff(heights).min() >= 0.04 * (high - low)


def test_each_prompt_has_figures_of_its_own(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    class Drawing:
        def __init__(self, name: str, prompt: int) -> None:
            self.drawn = name, prompt

        def savefig(self, path: Path, **_: Any) -> None:
            drawn.append((path.stem, *self.drawn))

    for name in ("spectra", "reconstruction", "contributions"):
        monkeypatch.setattr(figures, f"plot_{name}", lambda *given, name=name: Drawing(name, given[-1]))
    save_figures(run.record | {"prompts": ["one", "two"]}, run.vectors, tmp_path)
    names = {("spectra", 0), ("reconstruction", 0), ("contributions", 0)}
    names |= {(name, 1) for name, _ in names}
    assert set(drawn) == {(f"{name}-1" if prompt else name, name, prompt) for name, prompt in names}


def test_the_second_prompt_is_drawn_with_its_own_figures(run: Run) -> None:
    first, vectors = run.record["reconstructions"][0], dict(run.vectors)
    second = first | {"relative_error": 2e-3, "norm_error": 3e-3, "ordinary_relative_error": 0.75}
    record = run.record | {
        "prompts": ["one", "two"],
        "reconstructions": [first, second],
        "tokens": [token | {"prompt": 1} for token in run.record["tokens"][:2]],
        "prompt_tokens": run.record["prompt_tokens"] * 2,
    }
    for name in ("y", "reconstruction.detached", "reconstruction.ordinary"):
        vectors[f"{name}.1"] = vectors[f"{name}.0"] + 1
    (axes,) = plot_reconstruction(record, vectors, 1).axes
    labels = [str(line.get_label()) for line in axes.get_lines()]
    assert any(label.endswith("error 0.75") for label in labels)
    assert any(label.endswith("error 2.0\u00a0×\u00a010⁻³") for label in labels)
    np.testing.assert_array_equal(np.asarray(axes.get_lines()[-1].get_xdata()), vectors["y.1"].double().numpy())
    assert len(plot_contributions(record, 1).axes[0].patches) == 4
    assert [text.get_text() for text in plot_contributions(record, 0).axes[0].texts] == [
        "No token of this prompt was chosen."
    ]


def test_odd_tokens_are_drawn_without_a_missing_glyph(odd_record: dict[str, Any], run: Run, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        written = save_figures(odd_record, run.vectors, tmp_path)
    assert sorted(path.name for path in written) == sorted(
        f"{name}.{kind}" for name in ("spectra", "reconstruction", "contributions") for kind in ("png", "svg")
    )
    assert all(path.stat().st_size > 2000 for path in written)
    labels = [label.get_text() for label in plot_contributions(odd_record).axes[0].get_yticklabels()]
    assert any("$x^2$" in label for label in labels)
    assert not any("\\u91d1" in label for label in labels)


def test_a_character_comes_from_any_font_that_has_it_and_is_a_short_frame_elsewhere(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.font_manager import findfont, get_font

    known, other = (set(get_font(findfont(name)).get_charmap()) for name in ("DejaVu Sans", "STIXGeneral"))
    character = chr(min(code for code in other - known if code > 0x100))
    record = copy.deepcopy(dict(run.record))
    record["tokens"][0]["token"] = f"a{character}"
    monkeypatch.setattr(fonts, "_FONTS", ("DejaVu Sans",))
    assert fonts.drawable(f"a{character}") == "a▯"
    monkeypatch.setattr(fonts, "_FONTS", ("No Such Font", "DejaVu Sans", "STIXGeneral"))
    assert fonts.drawable(f"a{character}") == f"a{character}"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        save_figures(record, run.vectors, tmp_path)


@pytest.mark.parametrize("character", ["a", "金", "🌉"])
def test_titles_and_names_of_wide_characters_take_no_more_room(
    character: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "drawable", str)  # as where a font has them all
    tokens = [token | {"token": 40 * character} for token in run.record["tokens"]]
    figure = plot_contributions(run.record | {"prompts": [300 * character], "model": "m", "tokens": tokens})
    room = int(12 * figure.get_figwidth())
    assert room - 1 <= columns(figure.get_suptitle()) <= room
    for label in figure.axes[0].get_yticklabels():
        name = label.get_text().split("\u200e")[1]
        assert 21 <= columns(name) <= 22 and name.endswith("…")


@pytest.mark.parametrize(
    ("prompt", "model", "parts", "title"),
    [
        ("short", "m", 6, "short  (m without head.0, head.1, head.2, head.3 and 2 more)"),
        (99 * "p", "m", 2, f"{46 * 'p'}…  (m without head.0, head.1)"),
        (99 * "p", "smollm2", 6, f"{47 * 'p'}…  (smollm2 without 6 parts)"),
        (99 * "p", 60 * "m", 1, f"{24 * 'p'}…  ({30 * 'm'}… without 1 part)"),
        (99 * "p", 60 * "m", 0, f"{24 * 'p'}…  ({45 * 'm'}…)"),
        ("short", 90 * "m", 0, f"short  ({65 * 'm'}…)"),
    ],
)
def test_a_title_leaves_the_prompt_its_room(prompt: str, model: str, parts: int, title: str, run: Run) -> None:
    """What was switched off is counted before anything is cut, and a third of the sheet is the prompt's."""
    off = {"switched_off": [f"head.{part}" for part in range(parts)]}
    record = run.record | {"prompts": [prompt], "model": model, "definition": run.record["definition"] | off}
    told = plot_contributions(record).get_suptitle().replace("\u200e", "")
    assert told == title and len(told) < 12 * 6.4


def test_without_matplotlib(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (figures, sheet):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DetjacError, match=r"pip install 'detjac-lanczos\[report\]'"):
        plot_spectra(run.record)
    assert save_figures(run.record, run.vectors, tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_files_are_the_same_whatever_the_caller_has_set(run: Run, tmp_path: Path) -> None:
    import matplotlib
    from matplotlib import style

    plain, own = tmp_path / "plain", tmp_path / "own"
    save_figures(run.record, run.vectors, plain)
    theirs = {"text.usetex": True, "savefig.transparent": True, "savefig.bbox": "tight", "svg.fonttype": "none"}
    with style.context(["dark_background", theirs, {"axes.unicode_minus": False, "font.size": 30}]):
        before = dict(matplotlib.rcParams)
        save_figures(run.record, run.vectors, own)
        assert dict(matplotlib.rcParams) == before
    for path in plain.iterdir():
        assert path.read_bytes() == (own / path.name).read_bytes(), path.name


@pytest.mark.parametrize("plot", [plot_spectra, plot_reconstruction, plot_contributions])
def test_what_is_no_record_or_prompt_of_a_run_is_refused_in_one_line(plot: Any, run: Run) -> None:
    vectors = (run.vectors,) if plot is plot_reconstruction else ()
    for prompt in (9, 1, -1, 0.0, "a"):
        with pytest.raises(InputError, match=rf"prompt {prompt!r} does not exist; the run has prompts 0\.\.0$"):
            plot(run.record, *vectors, prompt=prompt)
    with pytest.raises(InputError, match=r"from a run's record; got a Run: give run\.record$"):
        plot(run, *vectors)
    with pytest.raises(InputError, match=r"from a run's record; got a dict: give run\.record$"):
        plot({}, *vectors)


@pytest.mark.parametrize(("vectors", "kind"), [(None, "NoneType"), ({}, "dict")])
def test_what_is_no_vectors_of_a_run_is_refused_in_one_line(vectors: Any, kind: str, run: Run) -> None:
    with pytest.raises(InputError, match=rf"from a run's vectors; got a {kind}: give run\.vectors$"):
        plot_reconstruction(run.record, vectors)


def test_figures_are_saved_in_a_folder_by_its_name(biased_run: Run, tmp_path: Path) -> None:
    (first, *_) = save_figures(biased_run.record, biased_run.vectors, str(tmp_path / "new" / "figures"))
    assert first == tmp_path / "new" / "figures" / "spectra.png" and first.is_file()
    with pytest.raises(InputError, match=r"give run\.record$"):
        save_figures(biased_run, biased_run.vectors, tmp_path / "none")  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
