"""`luthier prove`: a method's small public proof."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.arguments import Out, with_out
from luthier.console import Terminal
from luthier.terminal import echo


def command(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method with a proof, or a proof's YAML file.")],
    resume: Annotated[Path | None, typer.Option("--resume", help="The folder of a proof to go on with.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the result into the folder of the proof's YAML, to commit it.")
    ] = False,
    out: Out = None,
) -> None:
    """Run a method's proof and report whether each claim holds; a claim that fails is a result, not an error."""
    from luthier.compare.prove import prove
    from luthier.proofs.proof import read_proof
    from luthier.run_folder import RunFolder, read_json, write_json

    proof = read_proof(method)
    folder = None if resume is None else RunFolder.open(resume)
    path = prove(proof, folder, Terminal(), overrides=with_out(None, out))
    report = read_json(path)
    outcomes = [claim["verdict"]["outcome"] for claim in report["claims"].values()]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("holds", "fails", "undecided"))
    echo(f"{proof.method}: {report['mark']} ({counts} of {len(outcomes)} claims)")
    echo(f"proof: {path}")
    if write:
        write_json(proof.result, report)
        echo(f"written: {proof.result}")
