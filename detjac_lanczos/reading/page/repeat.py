"""How to repeat a run: the command line and the Python call, made from its record."""

from __future__ import annotations

import re
import shlex
from typing import Any

from detjac_lanczos.frozen.drop import part_named
from detjac_lanczos.reading.record_values import Record, switched_off

_DEFAULTS: dict[str, Any] = {
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
_OF_CAPTURE = ("chat", "add_special_tokens", "memory")
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")


def python_call(record: Record) -> str:
    """Return the Python call, with the options that differ from the defaults."""
    options = record["options"]
    prompts = record["prompts"]
    texts = None not in prompts
    stored = [f"embeds.{prompt}" for prompt in range(len(prompts))] if not all(record["token_ids"]) else []
    captured = [_model(record)]
    if texts:
        named = "prompt=" if record["live"] else ""  # of a live model the dtype stands before it
        captured.append(f"{named}{prompts[0] if len(prompts) == 1 else list(prompts)!r}")
    if stored:
        captured.append(f"inputs_embeds=[{', '.join(f'stored[{name!r}]' for name in stored)}]")
    elif not texts:
        captured.append(f"input_ids={record['token_ids']}")
    if record["position_ids"]:
        captured.append(f"position_ids={record['position_ids']}")
    if record["freeze"] != "gate":
        captured.append(f"freeze={record['freeze']!r}")
    asked = [] if options["k"] is None else [f"k={options['k']}"]
    if options["tokens"] is not None:
        asked.append(f"tokens={[tuple(pair) for pair in options['tokens']]}")
    for name, value in _changed(options).items():
        (captured if name in _OF_CAPTURE else asked).append(f"{name}={_literal(value)}")
    off, made = ", ".join(f"dl.{part_named(name)!r}" for name in switched_off(record)), ""
    if off:
        made = f"network = dl.detach({_body(captured)}).replace(drop=[{off}])\n"
        captured = ["network"]
    needed = stored or _is_probe(options["target"])
    opened = 'stored = dl.load_run("the folder of this run").vectors\n' if needed else ""
    return f"import detjac_lanczos as dl\n\n{opened}{made}run = dl.analyze({_body(captured + asked)})\nprint(run)"


def command_line(record: Record) -> str | None:
    """Return the ``detjac svd`` command, or None where only the Python call can say what was run."""
    options, prompts = record["options"], record["prompts"]
    changed = _changed(options)
    tokens = None if options["tokens"] is None else _same_of_each(options["tokens"], record["token_ids"])
    unsaid = switched_off(record) or "add_special_tokens" in changed or _is_probe(options["target"]) or tokens == []
    loaded_so = record["loading"].keys() - {"commit"}
    if record["live"] or loaded_so or record["position_ids"] or unsaid or not all(map(_can_be_typed, prompts)):
        return None
    flags = {"model": record["model"], "k": options["k"], "dtype": record["dtype"]}
    flags["quantization"] = record["quantization"]
    flags["device"] = None if record["device"] == "cpu" else record["device"]
    flags["tokens"] = None if tokens is None else ",".join(map(str, tokens))
    flags["freeze"] = None if record["freeze"] == "gate" else record["freeze"]
    flags |= {name.replace("_", "-"): "none" if value is None else value for name, value in changed.items()}
    words = [word for name, value in flags.items() if value is not None for word in _flag(name, str(value), value)]
    # A prompt that looks like an option stands behind all of them.
    given = [_quoted(prompt) for prompt in prompts]
    if any(prompt.startswith("-") for prompt in prompts):
        return " ".join(["detjac svd", *words, "--", *given])
    return " ".join(["detjac svd", *given, *words])


def _body(arguments: list[str]) -> str:
    return "\n    " + ",\n    ".join(arguments) + ",\n"


def _model(record: Record) -> str:
    if record["live"]:
        return f"(model, tokenizer),  # {record['model']!r}, as it was\n    dtype={record['dtype']!r}"
    said = {"dtype": record["dtype"], "quantization": record["quantization"]}
    loading = record["loading"]
    if record["device"] != "cpu" and "device_map" not in loading:
        said["device"] = record["device"]
    said |= {name: value for name, value in loading.items() if name != "commit"}
    options = "".join(f", {name}={value!r}" for name, value in said.items() if value is not None)
    return f"dl.load_model({record['model']!r}{options})"


def _changed(options: Record) -> dict[str, Any]:
    """Return the options that differ from their defaults; δ is of a claim of completeness alone."""
    changed = {name: options[name] for name, usual in _DEFAULTS.items() if options[name] != usual}
    if options["certify"] != "complete":
        changed.pop("delta", None)
    return changed


def _same_of_each(chosen: list[list[int]], token_ids: list[list[int]]) -> list[int]:
    """Return the tokens chosen of every prompt, counted from either end; none where prompts differ in them."""
    lists = [[token for number, token in chosen if number == prompt] for prompt in range(len(token_ids))]
    in_order = [[prompt, token] for prompt, tokens in enumerate(lists) for token in tokens] == chosen
    if not in_order or len(set(map(len, lists))) > 1:
        return []
    same = []
    for column in zip(*lists, strict=True):
        from_end = [token - len(ids) for token, ids in zip(column, token_ids, strict=True)]
        if len(set(column)) > 1 and len(set(from_end)) > 1:
            return []
        same.append(column[0] if len(set(column)) == 1 else from_end[0])
    return same


def _flag(name: str, word: str, value: Any) -> list[str]:
    flag = f"-{name}" if len(name) == 1 else f"--{name}"
    if value is True:
        return [flag]
    if word.startswith("-") and not _NEGATIVE.fullmatch(word):
        return [f"{flag}={_quoted(word)}"]
    return [flag, _quoted(word)]


def _quoted(word: str) -> str:
    """Return a word for a shell; what cannot be seen or pasted is written as the bytes of its UTF-8."""
    if word.isprintable():
        return shlex.quote(word)
    marks = {"\n": r"\n", "\t": r"\t", "\\": r"\\", "'": r"\'"}
    signs = (marks.get(s) or (s if s.isprintable() else "".join(rf"\{byte:03o}" for byte in s.encode())) for s in word)
    return f"$'{''.join(signs)}'"


def _can_be_typed(prompt: str | None) -> bool:
    """Whether a shell can hand a prompt on: text, in UTF-8, without the sign that ends a word."""
    return prompt is not None and "\0" not in prompt and not re.search("[\ud800-\udfff]", prompt)


def _is_probe(target: str) -> bool:
    return target.startswith("probe(")


def _literal(value: Any) -> str:
    if isinstance(value, str) and _is_probe(value):
        return "dl.probe(stored['probe'])"
    places = ("layer(", "attention(", "mlp(")
    return f"dl.{value}" if isinstance(value, str) and value.startswith(places) else repr(value)
