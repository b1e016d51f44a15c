"""The arguments of every command."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import detjac_lanczos
from detjac_lanczos.cli import commands, words
from detjac_lanczos.cli.process import BAD_INPUT, show

_NEGATIVE = re.compile(r"-\d[\d,-]*$|-\d*\.\d+$")
_DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
_PACKINGS = ("nf4", "nf4-double", "fp4", "fp4-double", "int8")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of this program.

    It takes -1,0 for a value, as it does -1, and no abbreviations: one that is clear today may not be tomorrow.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._negative_number_matcher = _NEGATIVE

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help and version as results are, so that what cannot be printed is an error."""
        if file is sys.stdout:
            show(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with the exit code for bad input."""
        self.exit(BAD_INPUT, f"detjac: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each leaves its function of `commands` as ``run``."""
    parser = Parser(
        prog="detjac",
        description="Certified singular vectors of the detached Jacobians of language models.",
    )
    parser.add_argument("--version", action="version", version=f"detjac-lanczos {detjac_lanczos.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], about: str, **more: Any
    ) -> argparse.ArgumentParser:
        made = subparsers.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", **more)
        made.set_defaults(run=run)
        return made

    _svd_arguments(command("svd", commands.svd, "find, certify and decode the singular vectors of every token"))
    check = command("verify", commands.verify, "measure the claims of a run again, on the model")
    check.add_argument("folder", type=words.not_blank, help="what `detjac svd --out` wrote")
    check.add_argument(
        "--model", type=words.not_blank, help="the model, if it has moved since (default: the one that is recorded)"
    )
    _device(check)
    _shared(check)
    again = command("report", commands.report, "write the page and the figures of a run again")
    again.add_argument("folder", type=words.not_blank, help="what `detjac svd --out` wrote")
    again.add_argument("--open", action="store_true", help="open it in the browser")
    _shared(again)
    _shared(command("models", commands.models, "list embedded models and supported families"))
    _plan_arguments(
        command("plan", commands.plan, "predict memory and time from a configuration, before running anything")
    )
    command("bench", commands.bench, "time against peers and floors; only in a checkout", add_help=False)
    return parser


def _svd_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", nargs="+", type=words.prompt_text, help="one prompt, or several that share every sweep")
    add(
        "--model",
        type=words.not_blank,
        default="smollm2",
        help="embedded name, hub id, folder or .gguf file (default: %(default)s)",
    )
    add("-k", "--k", type=words.count, help="singular triplets of each token (default: 8)")
    add("--threshold", type=words.positive, help="in place of -k: all triplets with larger singular values")
    add("--energy", type=words.tolerance, help="in place of -k: triplets for this share of the squared Frobenius norm")
    add("--out", type=words.not_blank, metavar="FOLDER", help="write run.json, vectors, page and figures there")
    add("--tokens", type=words.tokens, metavar="0,3-5", help="input tokens (default: all)")
    _tol(parser)
    claims = "the claim to make: complete adds that no larger value was missed (default: %(default)s)"
    add("--certify", choices=("triplets", "complete", "none"), default="triplets", help=claims)
    chance = f"with --certify complete: chance that the claim is wrong (default: {commands.DELTA})"
    add("--delta", type=words.tolerance, help=chance)
    _freeze(parser)
    _dtype(parser)
    packed = "pack the weights of the blocks by bitsandbytes; J is that of the decoded ones (default: as stored)"
    add("--quantization", type=str.lower, choices=_PACKINGS, help=packed)
    methods = ("auto", "lanczos", "randomized", "dense", "shared_basis")
    shared = "shared_basis surveys a long prompt: estimates from shared rows (default: %(default)s)"
    add("--method", choices=methods, default="auto", help=shared)
    polished = "of a survey, certify the flagged (σ_1 may be 5 %% off) or the N worst (default: %(default)s)"
    add("--polish", type=words.polish, default="none", metavar="none|flagged|N", help=polished)
    add("--seed", type=words.seed, default=0, help="(default: 0)")
    add("--block", type=words.count, help="width of the Lanczos blocks (default: the solver's choice)")
    add("--max-products", type=words.count, help="products both ways that each token may take (default: what it needs)")
    add("--source", default="embeddings", help="embeddings or layer(l) (default: %(default)s)")
    target = "output, residual, logits, layer(l), attention(l) or mlp(l) (default: %(default)s)"
    add("--target", default="output", help=target)
    add("--position", type=int, default=-1, help="row of the output (default: the last)")
    add("--chat", action="store_true", help="put the prompt through the model's chat template")
    add("--memory", type=words.not_blank, metavar="2GiB", help="budget for coefficients and streams (default: none)")
    resumed = "write every pass down there; the same command goes on where it was cut off (default: nothing is)"
    add("--checkpoint", type=words.not_blank, metavar="FOLDER", help=resumed)
    _device(parser)
    _shared(parser)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    named = "embedded name, hub id, .gguf file or a folder with a config.json (default: %(default)s)"
    add("--model", type=words.not_blank, default="smollm2", help=named)
    add("--tokens", type=words.count, required=True, help="length of the prompt")
    add("--chosen", type=words.tokens, metavar="0,3-5", help="tokens asked about one by one (default: all)")
    wider = "columns of a block (default: %(default)s, as svd begins; weights read per sweep may widen blocks to 8)"
    add("--width", type=words.count, default=3, help=wider)
    add("-k", "--k", type=words.count, default=8, help="singular triplets (default: %(default)s)")
    _tol(parser)
    add("--device", default="cpu", help="h100, h200, a100, or cpu: this one, measured (default: %(default)s)")
    room = "what everything has to fit into (default: the device's)"
    add("--memory", type=words.not_blank, metavar="40GiB", help=room)
    stored = "nf4, fp4 (each also -double), int8, or mxfp4 for gpt-oss (default: what the configuration says)"
    add("--quantization", help=stored)
    _dtype(parser)
    _freeze(parser)
    _shared(parser)


def _tol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tol", type=words.tolerance, default=1e-3, help="bound on the residuals over σ_j (default: %(default)s)"
    )


def _freeze(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--freeze", choices=("gate", "up", "half"), default="gate", help="frozen factor of a gated MLP (default: gate)"
    )


def _dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="auto", help="precision of weights and sweeps (default: as stored)"
    )


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=words.not_blank, help="where the weights go (default: cpu)")


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("-q", "--quiet", action="store_true", help="no progress, only results and errors")
    talk.add_argument("--verbose", action="store_true", help="every pass, the libraries' warnings, tracebacks")
