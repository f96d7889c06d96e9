"""Built-in models are built once, whole or not at all, and are ordinary Hugging Face folders."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedfuse.builtin import models as builtin
from fedfuse.builtin.architectures import ARCHITECTURES, MAX_LENGTH
from fedfuse.builtin.models import build, cache_root, ensure, is_builtin, model_folder, recipe_of
from fedfuse.builtin.text_world import pretraining_text
from fedfuse.builtin.tokenizers import KINDS
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.losses import sample_nll
from fedfuse.models.causal_lm import load_causal_lm
from tests.conftest import Tiny
from tests.models.workers import TINY, build_in_worker


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and tiny recipes."""
    monkeypatch.setenv("FEDFUSE_CACHE", str(tmp_path))
    for name, recipe in TINY.items():
        monkeypatch.setitem(builtin.RECIPES, name, recipe)
    return tmp_path / "models"


def entries(cache: Path) -> set[str]:
    """What is in the cache, locks aside."""
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def test_a_built_model_can_be_loaded_and_has_learnt(cache: Path) -> None:
    """After 60 steps it knows the language better than one that was hardly trained."""
    builtin.RECIPES["llama"] = replace(TINY["llama"], steps=60, width=16)
    nats = []
    for name in ("builtin:gpt2", "builtin:llama"):
        folder = build(name)
        assert folder == model_folder(name)
        assert folder.parent == cache
        files = {path.name for path in folder.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
        lm = load_causal_lm(str(folder), device="cpu")
        assert lm.max_length == MAX_LENGTH
        assert lm.tokenizer.special_ids == {"bos": 0, "eos": 1, "pad": 2, "unk": 3}
        data = Tiny.of(lm.model, lm.tokenizer).encode(pretraining_text(5, seed=9))
        nats.append(sample_nll(lm, data).sum() / data.label_bytes.sum())
    assert nats[1] < 0.8 * nats[0]


def test_the_same_recipe_gives_the_same_model(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for number in range(2):
        monkeypatch.setenv("FEDFUSE_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(number)
        before = torch.random.get_rng_state()
        weights.append((build("builtin:opt") / "model.safetensors").read_bytes())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert weights[0] == weights[1]


def test_a_model_is_built_once(cache: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    build("builtin:gpt2", lambda *step: steps.append(step))
    assert steps == [("builtin:gpt2", step, 3) for step in (1, 2, 3)]
    build("builtin:gpt2", lambda *step: pytest.fail("built again"))
    assert entries(cache) == {model_folder("builtin:gpt2").name}


@pytest.mark.parametrize(
    "change",
    [{"steps": 4}, {"seed": 1}, {"learning_rate": 1e-3}, {"version": 99}, {"tokenizer": "unigram"}],
)
def test_another_recipe_has_another_folder(change: dict[str, object]) -> None:
    before = model_folder("builtin:gpt2")
    assert model_folder("builtin:gpt2") == before
    builtin.RECIPES["gpt2"] = replace(TINY["gpt2"], **change)
    assert model_folder("builtin:gpt2") != before


def test_another_language_has_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_folder("builtin:gpt2")
    monkeypatch.setattr("fedfuse.builtin.text_world.PLACES", ("nowhere",))
    assert model_folder("builtin:gpt2") != before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_build_that_fails_leaves_nothing(cache: Path, error: type[BaseException]) -> None:
    def fail(_: str, step: int, __: int) -> None:
        if step == 2:
            assert len(entries(cache)) == 1  # the scratch folder is beside the real one
            assert not model_folder("builtin:gpt2").exists()
            raise error

    with pytest.raises(error):
        build("builtin:gpt2", fail)
    assert entries(cache) == set()
    assert (build("builtin:gpt2") / "config.json").exists()


def test_a_build_that_is_killed_leaves_no_model(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock goes with the process, and the next one builds."""

    def die(name: str, folder: Path, on_progress: object) -> None:
        (folder / "config.json").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    # A child that does nothing but files, or it would need a whole start of its own.
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "_pretrain", die)
        child = os.fork()
        if not child:
            try:
                build("builtin:gpt2")
            finally:
                os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    folder = model_folder("builtin:gpt2")
    assert not folder.exists()
    assert any(name.startswith(f".{folder.name}-") for name in entries(cache))
    assert (build("builtin:gpt2") / "model.safetensors").exists()


def test_two_builders_at_once(cache: Path) -> None:
    """The second waits for the first, and finds its model."""
    started = threading.Event()
    waited = threading.Event()
    folders: list[Path] = []

    def first(_: str, step: int, __: int) -> None:
        started.set()
        assert waited.wait(60)

    def second() -> None:
        started.wait(60)
        # Once the first goes on, this one is in the queue or about to be.
        threading.Timer(0.2, waited.set).start()
        folders.append(build("builtin:gpt2", lambda *step: folders.append(Path("built again"))))

    thread = threading.Thread(target=second)
    thread.start()
    folders.append(build("builtin:gpt2", first))
    thread.join(60)
    assert folders == [model_folder("builtin:gpt2")] * 2
    assert entries(cache) == {model_folder("builtin:gpt2").name}


def test_ensure_builds_what_is_missing_largest_first(cache: Path) -> None:
    build("builtin:llama")
    builtin.RECIPES["opt"] = replace(TINY["opt"], steps=4)
    steps: list[tuple[str, int, int]] = []
    names = ["gpt2", "some/hub-model", "builtin:gpt2", "builtin:llama", "builtin:opt"]
    ensure([*names, *names], lambda *step: steps.append(step))
    opt, gpt2 = "builtin:opt", "builtin:gpt2"
    assert steps == [(opt, i, 4) for i in (1, 2, 3, 4)] + [(gpt2, i, 3) for i in (1, 2, 3)]
    assert entries(cache) == {model_folder(f"builtin:{n}").name for n in ("llama", "opt", "gpt2")}
    ensure(names)


def test_ensure_in_two_processes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_build_in_worker", build_in_worker)
    steps: list[tuple[str, int, int]] = []
    names = ["builtin:gpt2", "builtin:llama"]
    ensure(names, lambda *step: steps.append(step), workers=2)
    for name in names:
        assert [step for step in steps if step[0] == name] == [(name, i, 3) for i in (1, 2, 3)]
    assert entries(cache) == {model_folder(name).name for name in names}


@pytest.mark.parametrize("use", [recipe_of, model_folder, build, lambda name: ensure([name])])
def test_an_unknown_model(use: object) -> None:
    with pytest.raises(FedfuseError, match=r"one of builtin:gpt2, .*got 'builtin:bert'"):
        use("builtin:bert")  # type: ignore[operator]


def test_names() -> None:
    assert is_builtin("builtin:gpt2")
    assert not is_builtin("gpt2")
    assert recipe_of("builtin:gpt2") == TINY["gpt2"]


def test_recipes_are_complete() -> None:
    """What a recipe names exists, and every size fits the architecture."""
    for recipe in builtin.RECIPES.values():
        assert recipe.architecture in ARCHITECTURES
        assert recipe.tokenizer in KINDS
        assert recipe.width % 4 == 0
    assert {"gpt2", "llama", "opt", "gpt-neox", "server", "words"} == set(builtin.RECIPES)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == tmp_path
    monkeypatch.delenv("FEDFUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_root() == Path("/elsewhere/fedfuse")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "fedfuse"


def test_vocabularies_stay_within_their_bound(cache: Path) -> None:
    for name, recipe in TINY.items():
        lm = load_causal_lm(str(build(f"builtin:{name}")), device="cpu")
        assert lm.vocab_size <= recipe.vocab_size
        assert lm.model.get_input_embeddings().weight.shape == (lm.vocab_size, recipe.width)
        assert np.isfinite(lm.model.get_input_embeddings().weight.numpy()).all()
