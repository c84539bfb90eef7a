"""Model folders that bring code, name files elsewhere, or are their own base."""

import json
import os
import shutil

import pytest

from luthier.errors import ModelError
from luthier.models.loading.bundled import bundled_path
from luthier.models.loading.load import load_config, load_model, load_tokenizer
from luthier.recipe.settings import Model

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def copied(folder):
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(bundled_path("nano") / name, folder / name)
    return folder


def load(folder, **more):
    return load_model(Model(path=str(folder), dtype="float32", **more), folder.parent)


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """A folder with a tuner of its own, whose file writes MARK when it runs."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tuned"
    copied(folder / "base")
    for name in FILES[2:]:
        shutil.copy(folder / "base" / name, folder / name)
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'MARK')!r}).write_text('ran')\n\n\nclass Evil:\n    pass\n"
    )
    return folder


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "tuned/evil.py"},
        {"kind": "./tuned/evil.py"},
        {"kind": "loramoe", "inner": {"kind": "tuned/evil.py"}},
        {"kind": "loramoe", "experts": ["tuned/evil.py"]},
        {"kind": "no_such_tuner"},
        {"kind": ["tuned/evil.py"]},
        [],
    ],
)
def test_no_code_of_a_model_folder_runs(tuned, tmp_path, spec):
    (tuned / "tuner.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError):
        load(tuned)
    assert not (tmp_path / "MARK").exists()


def test_it_runs_where_the_recipe_says_so(tuned, tmp_path):
    (tuned / "tuner.json").write_text(json.dumps({"kind": str(tuned / "evil.py")}))
    with pytest.raises(Exception, match="evil"):  # it holds no tuner
        load(tuned, remote_code=True)
    assert (tmp_path / "MARK").read_text() == "ran"


@pytest.mark.parametrize("name", ["../out/w.safetensors", "/tmp/w.safetensors", "sub/w.safetensors", "w.bin", 3])
def test_an_index_names_files_of_its_folder_alone(tmp_path, name):
    folder = copied(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="no file of safetensors in its folder"):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "[" * 100_000])
def test_an_index_that_is_none_is_said(tmp_path, text):
    folder = copied(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="no index of weights"):
        load(folder)


@pytest.mark.parametrize("bases", [["."], ["../a"], ["../b", "../a"], ["../b", "../b"]])
def test_an_adapter_is_not_its_own_base(tmp_path, bases):
    for name, base in zip("ab", bases, strict=False):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"")
    settings = Model(path=str(tmp_path / "a"))
    for function in (load_config, load_tokenizer, load_model):
        with pytest.raises(ModelError, match="is its own base"):
            function(settings, tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
def test_a_pipe_is_no_file_of_weights(tmp_path):
    folder = copied(tmp_path / "m")
    os.mkfifo(folder / "x.safetensors")
    assert load(folder).weights_id == load(bundled_path("nano")).weights_id


def test_a_config_nested_without_end_is_said(tmp_path):
    folder = copied(tmp_path / "m")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError):
        load_config(Model(path=str(folder)), tmp_path)
