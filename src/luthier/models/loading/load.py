"""Loads the model and the tokenizer that a recipe names: by bundled name, local folder or hub id.

Only safetensors are read, and code from a model's repository runs only if the recipe allows it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from luthier import parts
from luthier.errors import ModelError, nearest
from luthier.models.loading.bundled import HUB_FILES, NAMES, bundled_path
from luthier.models.loading.trust import refuse_circle, refuse_code, refuse_files_elsewhere
from luthier.models.quiet import quiet

if TYPE_CHECKING:
    import torch
    from torch import nn

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TUNER_FILE = "tuner.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class ModelSettings(Protocol):
    """The keys of the recipe's `model` block that loading reads."""

    @property
    def path(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def attention(self) -> str: ...
    @property
    def remote_code(self) -> bool: ...


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with its tokenizer.

    Attributes:
        weights_id: changes with any weight, the config and the adapter, and with nothing else.
        tuner: name of a tuner that is part of the module; it can neither be merged nor trained further.
        folded: an adapter was folded into the module, which then equals no model on disk.
    """

    module: nn.Module
    tokenizer: Any
    name: str
    weights_id: str
    tuner: str | None = None
    folded: bool = False


def folded(loaded: Loaded) -> Loaded:
    """A loaded adapter folded into its base: a plain model, which can be trained further."""
    module: Any = loaded.module
    if not hasattr(module, "merge_and_unload"):
        return loaded
    from luthier.models.adapters import merged

    return replace(loaded, module=merged(module).eval(), folded=True)


def load_config(settings: ModelSettings, base: Path) -> Any:
    """A model's configuration, without its weights; for an adapter or a model with a tuner in it, its base's."""
    from transformers import AutoConfig

    quiet()
    source, revision = resolve_model(settings.path, base), settings.revision
    while isinstance(source, Path) and _is_adapter(source):  # an adapter's base may be an adapter itself
        inner, revision = _base_of(source)
        source = resolve_model(inner, source)
    if isinstance(source, Path) and _is_tuned(source):
        source = source / "base"
    with _as_model_error(Path(source)):
        return AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=settings.remote_code)


def resolve_model(path: str, base: Path) -> Path | str:
    """The folder of a bundled name or a local path, or the id of a hub repository.

    Args:
        path: as written in the recipe.
        base: the folder that relative paths start from.

    Raises:
        ModelError: the folder does not exist or is not a model.
    """
    if path in NAMES:
        return bundled_path(path)
    local = Path(path).expanduser()
    local = local if local.is_absolute() else base / local
    if local.exists():
        _check_folder(local)
        return local.resolve()
    if path.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(path):
        raise ModelError(f"There is no model folder {local}.", _name_hint(path))
    return path


def load_tokenizer(settings: ModelSettings, base: Path) -> Any:
    """The model's tokenizer; for an adapter folder without one, its base model's.

    A tokenizer without a padding token pads with its end token, since padding is always masked.

    Raises:
        ModelError: there is no model, or it has no tokenizer.
    """
    quiet()
    folder = _local_folder(settings.path, settings.revision, base, settings.remote_code)
    if _is_adapter(folder) and not _tokenizer_files(folder):
        inner, revision = _base_of(folder)
        folder = _local_folder(inner, revision, folder, settings.remote_code)
    if not _tokenizer_files(folder):
        raise ModelError(
            f"{folder} has no tokenizer: {_listing(folder)}.", f"One of {', '.join(TOKENIZER_FILES)} is needed."
        )
    from transformers import AutoTokenizer

    with _as_model_error(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(settings: ModelSettings, base: Path, device: torch.device | str = "cpu") -> Loaded:
    """Load a causal language model, or a PEFT adapter on top of the model it was trained on.

    Args:
        settings: the recipe's `model` block. dtype `auto`: bfloat16 where it is fast, else float32.
        base: the folder that relative paths start from.
        device: device of the weights.

    Raises:
        ModelError: the folder is no causal language model, its weights are incomplete or damaged, or it needs code of
            its own that the recipe does not allow.
    """
    quiet()
    folder = _local_folder(settings.path, settings.revision, base, settings.remote_code)
    module, tuner = load_module(folder, settings, settings.dtype, device)
    if not (_is_adapter(folder) or _is_tuned(folder)):
        # A saved adapter names its base by this: a hub id, or a folder that PEFT alone can load.
        on_hub = isinstance(resolve_model(settings.path, base), str)
        module.name_or_path = module.config._name_or_path = settings.path if on_hub else str(folder)
    tokenizer = load_tokenizer(settings, base)
    return Loaded(module.eval(), tokenizer, settings.path, _weights_id(folder, settings.remote_code), tuner)


def load_module(
    folder: Path, settings: ModelSettings, dtype: str, device: torch.device | str = "cpu"
) -> tuple[Any, str | None]:
    """The module in a folder, whichever form it was saved in, and the name of a tuner in it."""
    if _is_adapter(folder):
        return _load_adapter(folder, settings, dtype, device), None
    if _is_tuned(folder):
        return load_tuned(folder, settings, device, dtype)
    return _load_weights(folder, settings, dtype, device), None


def empty_model(settings: ModelSettings, dtype: str, base: Path) -> nn.Module:
    """The architecture without weights, on the meta device; with the quantised layers that loading would make."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.auto import AutoHfQuantizer

    config = load_config(settings, base)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    if quantisation := getattr(config, "quantization_config", None):
        # Where its package or device is missing here, loading the model will say so.
        with suppress(Exception):
            quantizer = AutoHfQuantizer.from_config(quantisation, pre_quantized=True)
            quantizer.preprocess_model(model=module, dtype=getattr(torch, dtype), device_map=None)
    return module


def load_tuned(
    folder: Path, settings: ModelSettings, device: torch.device | str = "cpu", dtype: str | None = None
) -> tuple[Any, str]:
    """A model with a tuner in it, and the tuner's name: the base from `base/`, then the tuner's own `load`."""
    spec = json.loads((folder / TUNER_FILE).read_text(encoding="utf-8"))
    if not settings.remote_code:
        refuse_code(folder, spec)
    module = _load_weights(folder / "base", settings, dtype or settings.dtype, device)
    with _as_model_error(folder):
        return parts.build("tuner", spec).load(module, folder), spec["kind"]


def fast_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether this device multiplies bfloat16 matrices in hardware (CPU: AMX or AVX512-BF16)."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if kind == "cpu" else {}
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def _load_weights(folder: Path, settings: ModelSettings, dtype: str, device: torch.device | str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    if dtype == "auto":
        dtype = "bfloat16" if fast_bfloat16(device) else "float32"
    options = {} if settings.attention == "auto" else {"attn_implementation": settings.attention}
    with _as_model_error(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=settings.remote_code,
            output_loading_info=True,
            **options,
        )
    module, information = loaded
    # transformers only warns, and fills such weights with random numbers.
    missing = sorted(information["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{folder} lacks the weight {missing[0]}{more}, which would start from random numbers.",
            "Is the download complete, and is it a causal language model?",
        )
    module = module.to(device)
    if settings.attention == "auto":
        from luthier.models.kernels.attention import use_short_rows

        use_short_rows(module)
    return module


def _load_adapter(folder: Path, settings: ModelSettings, dtype: str, device: torch.device | str) -> Any:
    from luthier.models.adapters import read_adapter

    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} has adapter_config.json but no adapter_model.safetensors: {_listing(folder)}.")
    inner, revision = _base_of(folder)
    base_folder = _local_folder(inner, revision, folder, settings.remote_code)
    module = _load_weights(base_folder, settings, dtype, device)
    with _as_model_error(folder):
        # The adapter computes in the model's type, as it did in training.
        return read_adapter(module, folder, device)


@contextmanager
def _as_model_error(folder: Path) -> Iterator[None]:
    """Turn errors of transformers, safetensors and PEFT into one ModelError with a hint."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, RecursionError, SafetensorError) as error:
        text, hint = " ".join(str(error).split()), None
        if "trust_remote_code" in text:
            hint = "Its repository brings code of its own. If you trust it: model: {path: ..., remote_code: true}."
        elif "Unrecognized configuration class" in text or "model type" in text:
            hint = "Luthier trains causal language models that the installed transformers knows."
        elif isinstance(error, SafetensorError):
            hint = "The weights are damaged or incomplete; download them again."
        raise ModelError(f"{folder} cannot be loaded: {text[:300]}", hint) from error


def _local_folder(path: str, revision: str | None, base: Path, remote_code: bool) -> Path:
    source = resolve_model(path, base)
    return source if isinstance(source, Path) else _from_hub(source, revision, remote_code)


def _from_hub(repository: str, revision: str | None, remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*HUB_FILES, "*.py"] if remote_code else HUB_FILES
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except GatedRepoError:
        raise ModelError(
            f"{repository} asks for your consent on the hub.", "Accept it there, then `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"There is no model `{repository}`, here or on the hub.", _name_hint(repository)) from None
    except RevisionNotFoundError:
        raise ModelError(f"{repository} has no revision `{revision}`.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"`{repository}` is no folder here, and the hub cannot be asked ({type(error).__name__}).",
            _name_hint(repository) + " With a network, or after a download, a hub id works too.",
        ) from None
    _check_folder(Path(folder))
    return Path(folder)


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise ModelError(f"{folder} is a file, not a model folder.", "Give the folder that holds config.json.")
    if _is_adapter(folder) or _is_tuned(folder):
        return
    has_config, weights = (folder / "config.json").is_file(), _weight_files(folder)
    if has_config and weights:
        refuse_files_elsewhere(folder)
        return
    inside = [child.name for child in sorted(folder.iterdir()) if (child / "config.json").is_file()]
    inside += [child.name for child in sorted(folder.iterdir()) if (child / "adapter_config.json").is_file()]
    hint = "A model folder holds config.json, *.safetensors and a tokenizer."
    if inside:
        hint = f"Did you mean {folder / inside[0]}?"
    elif has_config and [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]:
        hint = "Its weights are pickled, which may run code when read. Save them again as safetensors."
    lacking = [] if has_config else ["config.json"]
    lacking += [] if weights else ["*.safetensors"]
    raise ModelError(f"{folder} is not a model: no {' and no '.join(lacking)}. {_listing(folder)}.", hint)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _is_tuned(folder: Path) -> bool:
    return (folder / TUNER_FILE).is_file()


def _base_of(folder: Path) -> tuple[str, str | None]:
    """The base that an adapter names, a path or a hub id, and its revision; the whole chain is followed once."""
    visited: set[Path] = set()
    below: Path | str = folder
    while isinstance(below, Path) and _is_adapter(below):
        refuse_circle(below, visited)
        inner, _ = _named_base(below)
        local = Path(inner).expanduser()
        below = local if local.is_absolute() else below / local
    return _named_base(folder)


def _named_base(folder: Path) -> tuple[str, str | None]:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    inner = config.get("base_model_name_or_path")
    if not inner:
        raise ModelError(f"{folder / 'adapter_config.json'} does not name its base model.")
    # A bundled model is saved by the path of its cache folder, which differs between machines.
    if not Path(inner).exists() and Path(inner).name in NAMES:
        inner = Path(inner).name
    return inner, config.get("revision")


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights; what else has such a name, such as a pipe, would be waited for without end."""
    return [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]


def _weights_id(folder: Path, remote_code: bool) -> str:
    digest = hashlib.sha256()
    files = _weight_files(folder)
    if _is_adapter(folder):
        inner, revision = _base_of(folder)
        digest.update(_weights_id(_local_folder(inner, revision, folder, remote_code), remote_code).encode())
        # The base's folder on this machine is no property of the weights.
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        digest.update(json.dumps(config | {"base_model_name_or_path": None}, sort_keys=True).encode())
    elif _is_tuned(folder):
        digest.update(_weights_id(folder / "base", remote_code).encode())
        files.append(folder / TUNER_FILE)
    else:
        files.append(folder / "config.json")
    for file in files:
        digest.update(f"{file.name} {_file_digest(file)}\n".encode())
    return digest.hexdigest()[:16]


def _file_digest(file: Path) -> str:
    """The content's hash; the hub's cache names large files by it, so these need not be read."""
    target = file.resolve()
    if target.parent.name == "blobs":
        return target.name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tokenizer_files(folder: Path) -> list[str]:
    return [name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _listing(folder: Path) -> str:
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    return "It holds " + (", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing")


def _name_hint(path: str) -> str:
    close = nearest(path, NAMES)
    return f"Did you mean `{close}`?" if close else f"Bundled models: {', '.join(NAMES)}."
