"""Extra memory at a long prompt and equal width: our sweeps and dense autograd, each in a process of its own."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

TEXT = (
    "The bridge out of Marin is the longest span on the coast road, and every morning the fog comes in under it before "
    "the first trucks do. People who live on the hill can tell the hour by the horns. "
)


def main() -> None:
    """Print the growth of peak memory, in bytes, of one method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method", choices=("ours", "autograd"))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=8)
    arguments = parser.parse_args()

    import torch

    import detjac_lanczos as dl
    from bench.dense_autograd import dense_jacobians, detached_model, embed

    loaded = dl.load_model("smollm2")
    ids = loaded.tokenizer(TEXT * (1 + arguments.tokens // 40))["input_ids"][: arguments.tokens]
    dl.detach(loaded, input_ids=ids[:8])
    for parameter in loaded.model.parameters():
        parameter.sum()
    before = _now()
    if arguments.method == "ours":
        batch = dl.detach(loaded, input_ids=ids).jacobians()
        batch.rmatmat_shared(torch.eye(loaded.model.config.hidden_size)[:, : arguments.width])
    else:
        twin = detached_model(loaded.model)
        dense_jacobians(twin, embed(loaded.model, ids), arguments.width, columns=arguments.width)
    print(json.dumps(peak_of_process() - before))


def _now() -> int:
    """Return the memory of this process in bytes, and have its peak begin from here: loading has one of its own."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_of_process() -> int:
    """Return the peak of this process in bytes (``ru_maxrss`` would carry over the parent's)."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: this measurement needs Linux")


def extra(method: str, tokens: int, width: int) -> int:
    """Return the growth of peak memory of a method, in bytes, measured in a process of its own."""
    command = [sys.executable, "-m", "bench.memory", method, "--tokens", str(tokens), "--width", str(width)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
