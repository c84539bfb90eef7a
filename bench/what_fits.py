"""What of a model fits on a GPU: `python bench/what_fits.py`. Estimates, from shapes alone; nothing is measured.

It asks the estimate of `luthier check` (`luthier.engine.estimate`) for the architecture on the meta device, as it
answers where there is a GPU: bfloat16, AdamW in float32, records of 1,024 tokens, 16 an update.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

# Published shapes, from config.json of Llama 3.2 1B and 3B and of Llama 3.1 8B.
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
TIED = {"1B", "3B"}
LENGTH, RECORDS = 1024, 16
CASES: dict[str, tuple[int, bool]] = {  # positions of a micro-batch, gradient checkpointing
    "micro 16,384 (auto)": (16384, False),
    "micro 2,048": (2048, False),
    "micro 2,048, checkpointing": (2048, True),
}


def model(name: str) -> Any:
    """The architecture in bfloat16, without weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, tie_word_embeddings=name in TIED, **SHAPES[name])
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


def estimated(name: str, tuner: str, tokens: int, checkpointing: bool) -> dict[str, Any]:
    """The estimated peak in GB, its largest pieces, and how many parameters are trained."""
    from luthier import parts
    from luthier.engine import estimate
    from luthier.tuners.base import TunerInputs

    module = model(name).requires_grad_(False)
    part = parts.build("tuner", tuner)
    module = part.apply(module, part.plan(module, TunerInputs(0, [])))
    with mock.patch("torch.cuda.is_available", return_value=True):  # so that it reckons as on a GPU
        peak = estimate.estimate(
            module, tokens, process=0, several=tokens < LENGTH * RECORDS, checkpointing=checkpointing
        )
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    pieces = {field: round(bytes_ / 1e9, 1) for field, bytes_ in vars(peak).items() if bytes_}
    return {"trained": trained, "total": round(peak.total / 1e9, 1), **pieces}


def main() -> None:
    """Print the table of docs/on_a_gpu.md."""
    print("| model | tuner | trained | " + " | ".join(CASES) + " |")
    print("|---|---|---|" + "---|" * len(CASES))
    for name in SHAPES:
        for tuner in ("lora", "full"):
            cells = [estimated(name, tuner, *case) for case in CASES.values()]
            totals = " | ".join(f"{cell['total']:.0f} GB" for cell in cells)
            print(f"| {name} | `{tuner}` | {cells[0]['trained'] / 1e6:,.0f} M | {totals} |", flush=True)
            for case, cell in zip(CASES, cells, strict=True):
                print(f"<!-- {name} {tuner} {case}: {json.dumps(cell)} -->")


if __name__ == "__main__":
    main()
