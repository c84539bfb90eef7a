"""What is read of options from a part's file alone."""

import pytest

from luthier import parts
from luthier.families import families
from luthier.options import Option, read_options, written

FAMILY = """
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.datasets.base import Split
from luthier.parts import part_field
from luthier.select.base import Selector
from luthier.steps.verbs.base import From
from luthier.vision.digits import CLASSES

Order = Literal["rising", "falling", "none"]
FIRST, ORDERS = 3, ("rising", "none")


class Own(Selector):
    NEEDS: ClassVar[tuple[str, ...]] = ()
    LIMIT = 4
    share: float = Field(0.25, gt=0.0, lt=1, description="Part that is " "kept.")
    pool: int = Field(4, description="Replaces the family's.")
    """


def options_of(tmp_path, *fields):
    path = tmp_path / "own.py"
    path.write_text(FAMILY + "\n    ".join(fields))
    return {option.name: option for option in read_options(path, "Own")}


def test_own_options_come_first_and_replace_those_of_the_family(tmp_path):
    options = options_of(tmp_path)
    assert list(options) == ["share", "pool", "keep", "warmup"]
    assert options["share"] == Option("share", "number > 0 and < 1", "0.25", "Part that is kept.")
    assert options["pool"].default == "4"
    assert "at least one candidate" in options["keep"].description


@pytest.mark.parametrize(
    ("field", "takes", "default"),
    [
        ("a: int", "whole number", None),
        ("a: int = Field(gt=0)", "whole number > 0", None),
        ("a: int = Field(..., gt=0)", "whole number > 0", None),
        ("a: int = Field(default=2)", "whole number", "2"),
        ("a: int = Field(CLASSES, ge=2, le=CLASSES)", "whole number 2 to 10", "10"),  # of another file
        ("a: int = FIRST", "whole number", "3"),
        ("a: int = 2 + len(ORDERS)", "whole number", "2 + len(ORDERS)"),  # computed: as it is written
        ("a: float | None = Field(None, gt=1.5)", "number > 1.5 or null", "null"),
        ("a: float = 1e-8", "number", "1e-8"),
        ("a: bool = False", "true or false", "false"),
        ("a: str = ''", "text", '""'),
        ("a: Split = 'train'", "train or test", "train"),  # an alias of another file
        ("a: tuple[Order, ...] = ORDERS", "list of rising, falling or none", "[rising, none]"),
        ("a: tuple[float, float] = (0.9, 0.95)", "list of 2 numbers", "[0.9, 0.95]"),
        ("a: Literal['all'] | list[str] = 'all'", "all or list of texts", "all"),
        ("a: dict[str, float] = Field(default_factory=dict)", "block of numbers", "{}"),
        ("a: dict[str, Any] | None = None", "block or null", "null"),
        ("a: dict[str, float] = {'x': 0.1}", "block of numbers", "{x: 0.1}"),
        ("a: list[float] = Field(default_factory=lambda: [0.5])", "list of numbers", "[0.5]"),
        ("a: Any = Field(default_factory=made)", "Any", "made()"),
        ("a: typing.Optional[int] = None", "whole number or null", "null"),
        ("a: Union[int, str] = 1", "whole number or text", "1"),
        ("a: Literal[FIRST, 4] = 3", "3 or 4", "3"),
        ("a: Annotated[int, Field(gt=0)] = 1", "whole number > 0", "1"),
        ("a: Callable[[int], int] = FIRST", "Callable[[int], int]", "3"),
        ("a: Annotated[Any, part_field('reward')] = 'math'", "reward", "math"),
    ],
)
def test_types_and_defaults_are_told_as_in_a_recipe(tmp_path, field, takes, default):
    assert options_of(tmp_path, field)["a"] == Option("a", takes, default, "")


def test_a_field_in_an_annotation_or_an_alias_describes_the_option(tmp_path):
    annotated = "Annotated[int, Field(ge=1, description='Of the annotation.')]"
    own = options_of(tmp_path, f"a: {annotated} = 2", f"b: {annotated} = Field(2, description='Of the default.')")
    assert own["a"] == Option("a", "whole number ≥ 1", "2", "Of the annotation.")
    assert own["b"] == Option("b", "whole number ≥ 1", "2", "Of the default.")
    shared = options_of(tmp_path, "from_: From = 'newest'")  # an alias of another file, whose key is no name in Python
    assert shared["from"].description.startswith("The model") and "from_" not in shared


def test_descriptions_that_are_no_literals_are_left_empty(tmp_path):
    assert options_of(tmp_path, "a: int = Field(1, description=str(FIRST))")["a"].description == ""


@pytest.mark.parametrize("slot", families())
def test_the_files_say_of_all_parts_what_pydantic_knows(slot):
    for entry in parts.catalogue(slot):
        fields = {field.alias or name: field for name, field in parts.load(slot, entry.name).model_fields.items()}
        assert {option.name for option in entry.described} == set(fields), entry.name
        for option in entry.described:
            field = fields[option.name]
            default = None if field.is_required() else written(field.get_default(call_default_factory=True))
            assert (option.default, option.description) == (default, field.description or ""), (entry.name, option)
