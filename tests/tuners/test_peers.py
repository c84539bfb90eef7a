"""lora against plain PEFT: the same adapter, trained by a loop of a few lines, and what our folder is to PEFT."""

import peft
import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model
from luthier.conformance.training import trainer
from luthier.engine.budget import Budget
from luthier.engine.trainer import Batching
from objectives.supervised.test_peers import rows
from support.peers import GRADIENT, labelled, padded

pytestmark = pytest.mark.peers
UPDATES, RECORDS = 3, 4


def plain_peft(drawn, seed, **options):
    """The adapter after UPDATES of AdamW on the loss of transformers, RECORDS at a time."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="CAUSAL_LM", **options)).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for update in range(UPDATES):
        ids, mask, targets = padded(drawn[update * RECORDS : (update + 1) * RECORDS])
        model(input_ids=ids, attention_mask=mask, labels=labelled(ids, targets)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), {name: p.detach() - start[name] for name, p in trained.items()}


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_lora_trains_as_peft_does_and_peft_loads_it(rank_stabilised, tmp_path):
    lora = parts.build("tuner", {"kind": "lora", "r": 4, "alpha": 6, "rank_stabilised": rank_stabilised})
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 1e-2, "weight_decay": 0.1})
    more = {"optimizer": adamw, "budget": Budget("updates", UPDATES), "seed": 7, "disturb": False}
    run = trainer(parts.build("objective", "sft"), lora, rows(), Batching(RECORDS, 40), **more)  # in micro-batches
    start = {name: master.detach().clone() for name, master in run.masters.master.items()}
    drawn = [run.source.ordered.at(position)[0] for position in range(UPDATES * RECORDS)]
    run.train()
    options = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "use_rslora": rank_stabilised}
    model, wanted = plain_peft(drawn, 7, **options)
    change = {name: master.detach() - start[name] for name, master in run.masters.master.items()}
    assert set(change) == set(wanted)
    error = apart(wanted, change)

    lora.save(run.policy.module, run.masters.of_model(), tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        theirs, saved = model(input_ids=ids).logits, loaded(input_ids=ids).logits
        assert float((theirs - tiny_model()(input_ids=ids).logits).abs().max()) > 1e-2
    of_logits = float((theirs - saved).abs().max() / theirs.abs().max())
    print(
        f"lora{', rank stabilised' * rank_stabilised}: weights {error:.1e}, logits of the saved folder {of_logits:.1e}"
    )
    assert error <= GRADIENT and of_logits <= GRADIENT
