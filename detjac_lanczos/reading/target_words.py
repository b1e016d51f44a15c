"""What a run's target is in words, what is frozen before it and how its left vectors are read: for page and figures."""

from __future__ import annotations

from detjac_lanczos.reading.record_values import Record

_NAMES = {
    "output": "output",
    "residual": "residual stream {end}",
    "layer": "residual stream after block {index}",
    "attention": "attention branch of block {index}",
    "mlp": "MLP branch of block {index}",
    "logits": "logits",
    "probe": "output along the probe's rows",
}
_SHARE = "the share of softmax a token would have if the {where} pointed that way"
_READ = {
    "output": "are read through the head",
    "logits": "are logits",
    "probe": "have an entry for each row of the probe",
}
_FIGURES = {
    "logits": _SHARE.format(where="logits"),
    "probe": "the square of an entry, its share of the vector's squared length",
}


def target_name(record: Record) -> str:
    """Return what y is: "output", "MLP branch of block 1" and so on."""
    kind, index = _target(record)
    tail = record["definition"]["tail"]
    return _NAMES.get(kind, "target").format(index=index, end=f"before {tail}" if tail else "after the last block")


def how_left_is_read(record: Record) -> tuple[str, str]:
    """Return how left vectors are read, and what the figure beside each token (or row of a probe) is."""
    kind, _ = _target(record)
    tail = record["definition"]["tail"].replace("the final norm", "the frozen final norm")
    through = f"pass {tail} and are read through the head" if tail else "are read through the head"
    return _READ.get(kind, through), _FIGURES.get(kind, _SHARE.format(where="output"))


def is_one_entry(record: Record) -> bool:
    """Whether y is a single number: it has no spread to compare an error with, only its size."""
    return bool(record["options"]["target"] == "probe(1 rows)")


def _target(record: Record) -> tuple[str, str]:
    kind, _, index = record["options"]["target"].rstrip(")").partition("(")
    return kind, index
