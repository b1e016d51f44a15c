"""What processor this is."""

import platform
import re
from pathlib import Path

_INFO = Path("/proc/cpuinfo")
_CORES = {
    "Zen 4": {("25", model) for model in (*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0))},
    "Zen 5": {("26", model) for model in range(0x100)},
}
"""Families and models of AMD's processors, by the name of their cores."""


def processor(info: str | None = None) -> dict[str, str]:
    """Return the name that figures go by, and the maker, family and model that it stands for.

    One that has no name here goes by these.

    Parameters
    ----------
    info : str, optional
        What ``/proc/cpuinfo`` says; where there is none, the name is what Python knows.
    """
    if info is None:
        info = _INFO.read_text(encoding="utf-8", errors="replace") if _INFO.exists() else ""
    said = {key: value.strip() for key, value in reversed(re.findall(r"^(\S.*?)\s*:(.*)$", info, re.MULTILINE))}
    if not {"vendor_id", "cpu family", "model"} <= said.keys():
        plain = platform.processor() or platform.machine()
        return {"name": plain, "processor": plain}
    maker, family, model = said["vendor_id"], said["cpu family"], said["model"]
    numbers = f"family {family} model {model}"
    told = f"{maker} {numbers}"
    named = next((name for name, cores in _CORES.items() if (family, int(model)) in cores), told)
    xeon = f"Xeon {numbers}"  # one generation: records that say Xeon alone are of a machine whose numbers nobody kept
    name = xeon if "Xeon" in said.get("model name", "") else named if maker == "AuthenticAMD" else told
    return {"name": name, "processor": told}
