from types import SimpleNamespace

from transformers import CLIPConfig, LlamaConfig, Qwen3Config

from luthier.models.config import text_config


def test_a_language_model_is_configured_by_its_own_configuration():
    config = LlamaConfig(hidden_size=32)
    assert text_config(config) is config and text_config(SimpleNamespace(config=config)) is config


def test_a_model_of_text_and_images_is_configured_by_the_inner_one():
    config = CLIPConfig(text_config={"hidden_size": 48})
    assert text_config(config) is config.text_config and text_config(config).hidden_size == 48


def test_an_inner_configuration_of_another_name_is_found_by_transformers():
    outer, inner = LlamaConfig(), Qwen3Config(hidden_size=64)
    outer.decoder = inner
    assert text_config(SimpleNamespace(config=outer)) is inner


def test_a_configuration_that_is_none_of_transformers_is_taken_as_it_is():
    config = SimpleNamespace(hidden_size=8, text_config=None)
    assert text_config(SimpleNamespace(config=config)) is config
