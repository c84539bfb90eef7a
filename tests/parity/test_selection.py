"""uds' scores and s2l's shares against the authors' code."""

import torch

from luthier.select._clusters import even_shares
from luthier.select._sketch import Projection, Ring, nuclear_norm
from parity.golden import difference, golden, tensor

UDS = golden("uds")


def side(name):
    """One side of the sketch with their signs and coordinates."""
    made = Projection(len(UDS[f"signs_{name}"]), len(UDS[f"coordinates_{name}"]), "fft_unnormalised")
    made.signs = tensor(UDS[f"signs_{name}"])
    made.coordinates = torch.tensor(UDS[f"coordinates_{name}"])
    return made


def test_uds():
    logits = tensor(UDS["logits"])
    norms = torch.stack([nuclear_norm(one @ one.T) for one in logits])
    along, across = (
        side(name).columns(torch.arange(len(UDS[f"signs_{name}"]))) for name in ("positions", "vocabulary")
    )
    sketches = torch.stack([(along @ one @ across.T).flatten() for one in logits])
    ring = Ring(len(UDS["ring"]), len(UDS["ring"][0]))
    ring.sketches = ring.sketches.double()
    ring.push(tensor(UDS["ring"]))
    distances = ring.mean_distance(sketches)
    assert difference(norms, UDS["nuclear_norm"]) < 1e-14
    assert difference(sketches, UDS["sketch"]) < 1e-14
    assert difference(distances, UDS["mean_distance"]) < 1e-14
    assert difference(norms + 0.0015 * distances, UDS["score_at_0.0015"]) < 1e-14


def test_s2l():
    for case in golden("s2l_shares"):
        assert even_shares(case["sizes"], case["budget"], 3) == case["taken"]
