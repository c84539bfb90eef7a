"""What every benchmark writes beside its numbers: the command, versions, hardware, and how busy the machine was."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("luthier", "torch", "transformers", "peft", "numpy")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
LOAD = os.getloadavg()[0]
"""Of the last minute before the benchmark began: what else the machine was doing."""


def write(name: str, found: dict[str, Any], path: Path | None = None, say: bool = True) -> None:
    """Write `results/<name>.json` (or `path`): what was found, and what it was found on."""
    target = path or RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"command": command(), **found, "versions": versions(), "hardware": hardware(), "load": load()}
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if say:
        print(f"written: {target}", flush=True)


def command() -> str:
    """The command line, without this machine's folders."""
    words = [f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return shlex.join(["python", *(Path(word).name if word.startswith("/") else word for word in words)])


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def hardware() -> dict[str, Any]:
    """Processor, its cores and instructions for narrow types, threads, memory and GPU."""
    facts = cpu_facts()
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "instructions": [name for name in INSTRUCTIONS if name in facts.get("flags", "").split()],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu,
        "system": platform.system(),
    }


def cpu_facts() -> dict[str, str]:
    """What the system says of its first processor; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in reversed(lines) if ":" in line}


def load() -> dict[str, float]:
    return {"before": LOAD, "after": os.getloadavg()[0]}
