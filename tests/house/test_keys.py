"""Every key of a recipe is described, and the rule for that finds a key that is not."""

from pydantic import Field

from house import keys_rules
from luthier.recipe.keys import settings_tree
from luthier.recipe.settings import Block, Settings, Source


def test_every_key_of_a_recipe_is_described():
    assert [*keys_rules.description_faults(Settings), *keys_rules.description_faults(Source, "data.train.")] == []
    assert len(settings_tree()) > 100 and all(setting.description and setting.form for setting in settings_tree())


class Inner(Block):
    named: int = Field(default=1, description="Records that an update draws, at least one of them.")
    silent: int = 2
    max_tokens: int = Field(default=3, description="The max tokens.")
    open: int = Field(default=4, description="Records that an update draws, and so on")


class Outer(Block):
    inner: Inner | None = Field(default=None, description="A block that the rule has to look into, too.")


def test_a_key_without_a_description_is_found():
    faults = list(keys_rules.description_faults(Outer))
    assert [fault.split(":")[0] for fault in faults] == ["inner.silent", "inner.max_tokens", "inner.open"]
