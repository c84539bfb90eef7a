"""Proofs: what each method is claimed to do, written before it was run, and what was then seen."""

from luthier.proofs.claims import Claim, Measured, judge
from luthier.proofs.proof import FOLDER, Committed, Proof, committed, read_proof

__all__ = ["FOLDER", "Claim", "Committed", "Measured", "Proof", "committed", "judge", "read_proof"]
