"""How to repeat a run: the command line and the Python call, made from its record."""

from __future__ import annotations

import shlex
from typing import Any

from detjac_lanczos.reading.record_values import Record

_DEFAULTS: dict[str, Any] = {
    "k": 8,
    "threshold": None,
    "energy": None,
    "tol": 1e-3,
    "certify": "triplets",
    "delta": 1e-6,
    "method": "auto",
    "polish": None,
    "seed": 0,
    "block": None,
    "max_products": None,
    "source": "embeddings",
    "target": "output",
    "position": -1,
    "chat": False,
    "add_special_tokens": True,
    "memory": None,
}
_FLAGS = ("threshold", "energy", "tol", "certify", "delta", "max_products", "method", "polish", "seed", "memory")


def python_call(record: Record) -> str:
    """Return the Python call, with the options that differ from the defaults."""
    options = record["options"]
    prompts = record["prompts"]
    texts = None not in prompts
    packed = f", quantization={record['quantization']!r}" if record.get("quantization") else ""
    said = [f"dl.load_model({record['model']!r}, dtype={record['dtype']!r}{packed})"]
    if texts:
        said.append(repr(prompts[0] if len(prompts) == 1 else list(prompts)))
    if options["k"] is not None:
        said.append(f"k={options['k']}")
    if all(record["token_ids"]):
        if not texts:
            said.append(f"input_ids={record['token_ids']}")
    else:
        stored = ", ".join(f"stored['embeds.{prompt}']" for prompt in range(len(prompts)))
        said.append(f"inputs_embeds=[{stored}]")
    if record.get("position_ids"):
        said.append(f"position_ids={record['position_ids']}")
    if options["tokens"] is not None:
        said.append(f"tokens={[tuple(pair) for pair in options['tokens']]}")
    if record["freeze"] != "gate":
        said.append(f"freeze={record['freeze']!r}")
    for name in _changed(options):
        said.append(f"{name}={_literal(options[name])}")
    body = ",\n    ".join(said)
    stored = "" if all(record["token_ids"]) else 'stored = dl.load_run("the folder of this run").vectors\n'
    return f"import detjac_lanczos as dl\n\n{stored}run = dl.analyze(\n    {body},\n)\nprint(run)"


def command_line(record: Record) -> str | None:
    """Return the ``detjac svd`` command, or None where only the Python call can say what was run."""
    options = record["options"]
    changed = _changed(options)
    unsaid = [name for name in changed if name not in _FLAGS or options[name] is None]
    prompt = record["prompts"][0]
    if len(record["prompts"]) > 1 or prompt is None or not prompt.isprintable() or unsaid:
        return None
    words = ["detjac", "svd", prompt, "--model", record["model"]]
    words += [] if options["k"] is None else ["-k", options["k"]]
    words += ["--dtype", record["dtype"]]
    words += ["--quantization", record["quantization"]] if record.get("quantization") else []
    if options["tokens"] is not None:
        words += ["--tokens", ",".join(str(token) for _, token in options["tokens"])]
    if record["freeze"] != "gate":
        words += ["--freeze", record["freeze"]]
    for name in changed:
        words += [f"--{name.replace('_', '-')}", options[name]]
    return shlex.join(str(word) for word in words)


def _changed(options: Record) -> list[str]:
    return [name for name, usual in _DEFAULTS.items() if name != "k" and options.get(name, usual) != usual]


def _literal(value: Any) -> str:
    places = ("layer(", "attention(", "mlp(", "probe(")
    return f"dl.{value}" if isinstance(value, str) and value.startswith(places) else repr(value)
