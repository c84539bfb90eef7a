"""Each rule of the house finds the fault it is for, and leaves the honest neighbour of that fault alone."""

from pathlib import Path

import pytest

from house import imports, links, names, parts_rules, text_rules


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("data/rows.py", "from luthier.engine.update import run"),  # upward
        ("data/rows.py", "from ..engine import update"),  # upward, relative
        ("data/rows.py", "def f():\n    import luthier.engine.update"),  # upward, inside a function
        ("data/rows.py", "from luthier import engine"),  # upward, by the package
        ("data/rows.py", "from .. import engine"),
        ("data/rows.py", "from luthier.models import load"),  # sideways
        ("data/deep/rows.py", "from ...models import load"),
        ("recipe/load.py", "from luthier import records"),  # neighbours of level 0
        ("errors.py", "from luthier.types import Row"),  # level 0 against its order
        ("report/html.py", "from luthier import run"),  # the package itself is the top
        ("data/rows.py", "import importlib"),
        ("data/rows.py", "from importlib import import_module"),
        ("data/rows.py", "import importlib.util"),
        ("data/rows.py", "x = __import__('luthier.engine')"),
        ("data/rows.py", "x = lazy('luthier.engine.update')"),
        ("attic/rows.py", "x = 1"),  # a room without a level
        ("data/rows.py", "from luthier.atic import x"),  # a room that is not there
    ],
)
def test_import_faults_are_found(tmp_path, name, line):
    plant(
        tmp_path / "luthier",
        {"engine/__init__.py": "", "run_folder.py": "", "models/loading/load.py": "", name: line + "\n"},
    )
    faults = imports.import_faults(tmp_path / "luthier")
    assert len(faults) == 1 and name in faults[0], faults


def test_honest_imports_pass(tmp_path):
    lines = {
        "parts.py": "import importlib.util\nfrom luthier.errors import E",
        "data/rows.py": "from luthier import errors, __version__\nfrom .other import x\nimport importlib.metadata",
        "objectives/loss.py": "torch = lazy('torch')\nshared = lazy('luthier.objectives._shared')",
        "engine/update.py": "from luthier.objectives.base import Objective\nfrom ..data import rows",
        "cli/app.py": "from luthier import __version__\nfrom luthier.compare.plan import plan",
        "errors.py": "class E(Exception):\n    pass",
        "__main__.py": "from luthier.cli.app import main",
    }
    assert imports.import_faults(plant(tmp_path / "luthier", lines)) == []


CIRCLE = {
    "a/one.py": "from luthier.b import two",
    "b/two.py": "three = lazy('luthier.c.three')",
    "c/three.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from luthier.a.one import x",
    "b/__init__.py": "",
}


def test_a_circle_of_files_is_found(tmp_path):
    faults = imports.cycle_faults(plant(tmp_path / "luthier", CIRCLE))
    circle = "luthier.a.one → luthier.b.two → luthier.c.three → luthier.a.one"
    assert faults == [f"imported in a circle: {circle}"]


def test_files_without_a_circle_pass(tmp_path):
    straight = {**CIRCLE, "c/three.py": "from ..b import __name__\nimport luthier.d", "d.py": "def f():\n    import os"}
    assert imports.cycle_faults(plant(tmp_path / "luthier", straight)) == []


def test_two_classes_of_one_name_are_found(tmp_path):
    files = {
        "rewards/exact.py": "class Exact:\n    pass",
        "metrics/exact.py": "class Exact:\n    pass",  # parts of two slots: a recipe tells them apart
        "engine/run.py": "class Run:\n    pass\nclass _Own:\n    pass",
        "report/run.py": "class Run:\n    pass\nclass _Own:\n    pass",
        "metrics/base.py": "class Metric:\n    pass",
        "steps/metric.py": "class Metric:\n    pass",
    }
    package = plant(tmp_path / "luthier", files)
    faults = names.class_faults(package, {"reward": ("rewards",), "metric": ("metrics",)})
    assert sorted(fault.split("`")[1] for fault in faults) == ["Metric", "Run"]


def test_nameless_variables_are_counted(tmp_path):
    text = "found = 1\nfor one in [found]:\n    x = [place for place in range(3)]\nwith open('f') as found:\n    x"
    counts = names.nameless(plant(tmp_path / "luthier", {"a.py": text}), ("found", "one", "place", "made"))
    assert counts == {"found": 2, "one": 1, "place": 1}


def test_a_package_that_is_too_large_is_found(tmp_path):
    package = plant(tmp_path / "luthier", {"data/a.py": "x = 1\n" * 30, "engine/b.py": "x = 1\n" * 10})
    assert [fault.split()[0] for fault in text_rules.size_faults(package, 0.5)] == ["data"]


def test_torch_at_import_is_found(tmp_path):
    files = {"p/heavy.py": "import torch", "p/chain.py": "import p.heavy", "p/light.py": "def f():\n    import torch"}
    faults = imports.torch_faults(plant(tmp_path, files), ["p.heavy", "p.chain", "p.light"])
    assert [fault.split(":")[0] for fault in faults] == ["p.heavy", "p.chain"]


SLOTS = {"objective": ("objectives",), "metric": ("evals/metrics",)}
HOUSE = {
    "src/luthier/objectives/base.py": "class Objective:\n    pass",
    "src/luthier/objectives/supervised/sft.py": "class SFT:\n    a: int = 0\n    def f(self):\n        return self.a",
    "src/luthier/evals/metrics/exact.py": "class Exact:\n    pass",
    "docs/methods/sft.md": "# sft",
    "docs/parts.md": "`exact` compares texts",
    "tests/objectives/test_sft.py": "",
    "tests/evals/test_exact.py": "",
}


def faults_with(root: Path, changes: dict[str, str | None]) -> list[str]:
    plant(root, {name: text for name, text in {**HOUSE, **changes}.items() if text is not None})
    package = root / "src" / "luthier"
    return parts_rules.name_faults(root, package, SLOTS) + parts_rules.option_faults(package, SLOTS)


def test_a_house_in_order_passes(tmp_path):
    assert faults_with(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"docs/methods/sft.md": None}, "docs/methods/sft.md is missing"),
        ({"docs/parts.md": ""}, "mentions `exact`"),
        ({"tests/objectives/test_sft.py": None}, "no test_sft.py"),
        ({"tests/evals/test_exact.py": None, "tests/other/test_all.py": "from x import Exact"}, "no test_exact.py"),
        ({"src/luthier/evals/metrics/exact.py": "class Other:\n    pass"}, "wanted one class"),
        ({"src/luthier/evals/metrics/exact.py": "class Exact:\n    pass\nclass Two:\n    pass"}, "wanted one class"),
        ({"src/luthier/evals/metrics/exact.py": "class Exact:\n    idle: int = 1"}, "nothing reads the option `idle`"),
        ({"src/luthier/objectives/diffusion/sft.py": "class SFT:\n    pass"}, "the objective `sft` is also"),
    ],
)
def test_part_faults_are_found(tmp_path, changes, complaint):
    faults = faults_with(tmp_path, changes)
    assert len(faults) == 1 and complaint in faults[0], faults


ASCENT = "Length of the ascent step; larger pushes the states further."


@pytest.mark.parametrize(
    ("option", "count"),
    [
        ("step_size: float = 0.1", 1),
        ("step_size: float", 1),
        ("step_size: float = Field(0.1, ge=0.0)", 1),
        ('step_size: float = Field(0.1, description="")', 1),
        ('step_size: float = Field(0.1, description="The size of the steps.")', 1),  # the name again
        ('step_size: float = Field(0.1, description="Size of a step, a float.")', 1),
        ("step_size: float = Field(0.1, description=ASCENT)", 1),  # no literal: the catalogue cannot read it
        (f'step_size: float = Field(0.1, description="{ASCENT * 5}")', 1),
        (f'step_size: float = Field(0.1, description="{ASCENT}")', 0),
        ('step_size: float = Field(0.1, description="Length of the ascent step; " "larger pushes further.")', 0),
        ("STEPS: ClassVar[int] = 1", 0),
        ("_step: float = 0.1", 0),
    ],
)
def test_options_without_a_description_are_found(tmp_path, option, count):
    plant(tmp_path, {**HOUSE, "src/luthier/objectives/supervised/sft.py": f"class SFT:\n    {option}"})
    faults = parts_rules.description_faults(tmp_path / "src" / "luthier", SLOTS)
    assert len(faults) == count and all("`step_size`" in fault for fault in faults), faults


def test_small_parts_may_share_a_test_file_but_objectives_may_not(tmp_path):
    shared = {"tests/evals/test_exact.py": None, "tests/evals/test_metrics.py": "from x import Exact"}
    assert faults_with(tmp_path, shared) == []
    other = {"tests/objectives/test_sft.py": None, "tests/objectives/test_all.py": "from x import SFT"}
    assert len(faults_with(tmp_path / "second", {**shared, **other})) == 1


def test_underscore_helpers_and_constants_are_no_faults(tmp_path):
    fields = "    PAPER: ClassVar[str] = ''\n    trim: bool = True\n"
    beside = "@dataclass(frozen=True)\nclass Line:\n    count: int\nclass _Helper:\n    pass\n"
    text = f"{beside}class Exact:\n{fields}    def f(self):\n        return self.trim"
    assert faults_with(tmp_path, {"src/luthier/evals/metrics/exact.py": text}) == []


@pytest.mark.parametrize(
    "text",
    [
        "import random\nx = random.random()",
        "import random as r\nr.seed(1)",
        "from random import choice\nchoice([1])",
        "import numpy as np\nnp.random.rand(3)",
        "import numpy\nnumpy.random.seed(0)",
        "from numpy import random\nrandom.rand(3)",
        "numpy = lazy('numpy')\nnumpy.random.normal()",
        "import torch\ntorch.rand(3)",
        "torch = lazy('torch')\ntorch.manual_seed(0)",
        "import torch\ntorch.nn.functional.dropout(x)",
        "import torch.nn.functional as F\nF.dropout(x)",
        "from torch import randn\nrandn(3)",
        "def f(x):\n    return x.uniform_()",
    ],
)
def test_global_randomness_is_found(tmp_path, text):
    assert len(parts_rules.random_faults([plant(tmp_path, {"loss.py": text})])) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import random\nrandom.Random(3).random()",
        "import numpy\nnumpy.random.default_rng(3).random()",
        "import torch\ntorch.rand(3, generator=g)",
        "def f(x, g):\n    return x.uniform_(generator=g)",
        "def f(view):\n    return view.uniform(2)",
        "import torch\ntorch.softmax(x, -1)",
    ],
)
def test_keyed_randomness_passes(tmp_path, text):
    assert parts_rules.random_faults([plant(tmp_path, {"loss.py": text})]) == []


def test_lengths_are_found(tmp_path):
    long = "def f():\n" + "    x = 1\n" * 60
    short = "def f():\n" + "    x = 1\n" * 59
    plant(tmp_path, {"long.py": long, "short.py": short, "file.py": "x = 1\n" * 501})
    assert [Path(fault.split(":")[0]).name for fault in text_rules.length_faults([tmp_path])] == ["file.py", "long.py"]


def test_leftovers_are_found(tmp_path):
    plant(tmp_path, {"a.py": "x = 1  # TO" + "DO: later\n", "b.py": "todo = 1\n"})
    assert len(text_rules.leftover_faults([tmp_path])) == 1


@pytest.mark.parametrize(
    "line",
    [
        "see /" + "root/x",
        "'/" + "work/y'",
        "/" + "home/me/z",
        "pip -i https://py" + "pi.org/simple",
        "box.inter" + "nal",
        "at 10" + ".0.0.7",
    ],
)
def test_machine_names_are_found(tmp_path, line):
    plant(
        tmp_path, {"notes.md": line, "runs/x.md": line, "docs/fine.md": "a/tmp/b, arxiv.org, 127.0.0.1, torch 2.13.0"}
    )
    assert len(text_rules.machine_faults(tmp_path)) == 1


@pytest.mark.parametrize(("init", "log", "count"), [("1.0", "1.0", 0), ("1.1", "1.0", 1), ("1.0", "0.9", 1)])
def test_versions_that_disagree_are_found(tmp_path, init, log, count):
    files = {
        "pyproject.toml": '[project]\nversion = "1.0"\n',
        "src/luthier/__init__.py": f'__version__ = "{init}"\n',
        "CHANGELOG.md": f"## [{log}] - today\n",
    }
    assert len(text_rules.version_faults(plant(tmp_path, files))) == count


PAGES = {
    "README.md": "[page](docs/page.md#two-words), [code](src/a.py), `[no](link.md)`, [web](https://arxiv.org/abs/1)",
    "src/a.py": "",
    "docs/page.md": "# Two words\n[back](folder/other.md), [there], \\[no](x.md), [B,T]\n\n[there]: #two-words\n",
    "docs/folder/other.md": (
        "# `train.x`: more\n[up](../page.md), [here](#trainx-more)\n```\n[no](link.md)\n# No heading\n```\n"
    ),
}


def test_links_in_order_pass(tmp_path):
    assert links.link_faults(plant(tmp_path, PAGES)) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"docs/page.md": "# Two other words\n"}, "README.md: docs/page.md#two-words: page.md has no such heading"),
        ({"src/a.py": None}, "README.md: src/a.py: there is no such file"),
        ({"docs/page.md": "# Two words\n[a]\n\n[a]: gone.md\n"}, "docs/page.md: gone.md: there is no such file"),
        ({"docs/page.md": "# Two words\n[a](../src/a.py)\n"}, "docs/page.md: ../src/a.py: leaves docs/"),
        ({"docs/page.md": "# Two words\n[a](folder)\n"}, "docs/page.md: folder: is a folder"),
        ({"docs/page.md": "# Two words\n[a](folder/other.md#no-heading)\n"}, "other.md has no such heading"),
        ({"docs/page.md": "# Two words\n# Äpfel – x\n[a](#äpfel--x)\n"}, "page.md has no such heading"),
    ],
)
def test_links_that_lead_nowhere_are_found(tmp_path, changes, complaint):
    files = {name: text for name, text in {**PAGES, **changes}.items() if text is not None}
    faults = links.link_faults(plant(tmp_path, files))
    assert len(faults) == 1 and complaint in faults[0], faults
