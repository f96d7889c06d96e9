"""Tasks of lm-evaluation-harness, on a model with its adapter.

The harness is an optional dependency (extra ``eval``): L. Gao et al., "The Language Model
Evaluation Harness", https://github.com/EleutherAI/lm-evaluation-harness. Forward passes, batches
and metrics are its own. Its model class is changed in two places, so that a model is asked what it
was trained on: texts are tokenized by the run's tokenizer, behind the token that begins every
input, and rows of the output head beyond the vocabulary are cut off.

Tasks that generate text are refused; this project does not generate.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedfuse.errors import FedfuseError, check
from fedfuse.evaluation.intervals import DRAWS
from fedfuse.models.causal_lm import CausalLM
from fedfuse.models.loading import loading_errors, model_source
from fedfuse.models.precision import PRECISIONS

# Kinds of tasks that need log-probabilities alone.
KINDS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        task: the harness's name of the task.
        metric: its name of the metric, such as ``acc``; behind a comma, the filter of answers if
            there is one.
        value: in the metric's unit.
        stderr: standard error of the value; None where the harness gives none.
    """

    task: str
    metric: str
    value: float
    stderr: float | None


def check_installed() -> None:
    """Refuse to go on without the harness.

    Raises:
        FedfuseError: saying how to install it.
    """
    expected = "lm-evaluation-harness; install it with: pip install 'fedfuse[eval]'"
    check("--tasks", "no package lm_eval", expected, find_spec("lm_eval"))


def load_tasks(names: Sequence[str], include_path: Path | None = None) -> list[Any]:
    """Load tasks and their data.

    A task of the harness's own downloads its data where it is not cached; one from local files that
    names local data needs no network.

    Args:
        names: of tasks, groups or tags, one or more.
        include_path: folder with YAML files of further tasks. They may name functions in Python
            files beside them, which are run.

    Returns:
        The harness's tasks and groups.

    Raises:
        FedfuseError: without the harness; for a folder or name that does not exist, data that
            cannot be loaded, or a task that generates text.
    """
    check_installed()
    given = include_path is None or include_path.is_dir()
    check("--include-path", repr(str(include_path)), "a folder with YAML files of tasks", given)
    check("--tasks", "none", "at least one task", names)
    manager = _manager(names, include_path)
    for name in names:
        close = ", ".join(get_close_matches(name, manager.all_tasks, n=3)) or "another name"
        check("--tasks", repr(name), f"a task of the harness, perhaps {close}",
              name in manager.all_tasks)  # fmt: skip
    found: list[Any] = []
    for name in names:
        try:
            with _quiet():
                loaded = manager.load([name])
        except Exception as error:  # the harness and its data sets raise many types
            reason = " ".join(str(error).split())[:300]
            raise FedfuseError(
                f"task {name!r} cannot be loaded: expected its data, got "
                f"{type(error).__name__}: {reason}"
            ) from error
        for task in loaded["tasks"].values():
            kind = task.get_config("output_type")
            check(f"task {name!r}", repr(kind), f"one of {', '.join(KINDS)}", kind in KINDS)
        groups = loaded["groups"]
        found += [groups[name]] if name in groups else loaded["tasks"].values()
    return found


def _manager(names: Sequence[str], include_path: Path | None) -> Any:
    """The harness's index of tasks: of local files alone where they have all names.

    Reading its own takes some ten seconds. A local group may consist of those.
    """
    from lm_eval.tasks import TaskManager

    with _quiet():
        if include_path is not None:
            local: Any = TaskManager(include_path=str(include_path), include_defaults=False)
            if {*names} <= {*local.all_tasks} - {*local.all_groups}:
                return local
        return TaskManager(include_path=include_path and str(include_path))


def run_tasks(
    lm: CausalLM,
    tasks: Sequence[Any],
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> tuple[list[TaskScore], dict[str, Any]]:
    """Score a model on tasks.

    Args:
        lm: the model.
        tasks: as ``load_tasks`` gives them.
        shots: solved examples before each question; None for what each task says.
        limit: questions of each task; None for all.
        batch_size: texts of a forward pass.
        seed: seed of the choice of examples, and of the bootstrap of some standard errors.

    Returns:
        The scores, and the harness's version with the version, shots and samples of each task.
    """
    from importlib.metadata import version

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with _quiet():
        found: dict[str, Any] = simple_evaluate(
            model=_harness_model(lm, batch_size),
            tasks=list(tasks),
            task_manager=TaskManager(include_defaults=False),  # they are loaded already
            num_fewshot=shots,
            limit=limit,
            log_samples=False,
            bootstrap_iters=DRAWS,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    about = {
        "harness": version("lm_eval"),
        "task_versions": found["versions"],
        "task_shots": found["n-shot"],
        "task_samples": found["n-samples"],
    }
    return list(_scores(found["results"])), about


def _scores(results: dict[str, dict[str, Any]]) -> Iterator[TaskScore]:
    """The numbers among results, which stand there as ``acc,none`` and ``acc_stderr,none``."""
    for task, values in results.items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr"):
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}")
            name = metric if chosen == "none" else f"{metric},{chosen}"
            known = float(stderr) if isinstance(stderr, int | float) else None
            yield TaskScore(task, name, float(value), known)


def _harness_model(lm: CausalLM, batch_size: int) -> Any:
    """The harness's model class around a model; see the file's head."""
    from lm_eval.models import huggingface
    from transformers import AutoTokenizer

    HFLM: Any = huggingface.HFLM

    class Model(HFLM):  # type: ignore[misc]
        """The harness's model, on a run's tokens."""

        def tok_encode(self, string: str, *_: Any, **__: Any) -> list[int]:
            """Tokens of a text, none of them special."""
            return lm.tokenizer.encode_ids([string])[0]

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            before, after = super()._encode_pair(context, continuation)
            return [lm.tokenizer.bos_id, *before], after

        def _model_call(self, *inputs: Any, **named: Any) -> Any:
            return super()._model_call(*inputs, **named)[..., : lm.vocab_size]

        def get_model_info(self) -> dict[str, Any]:
            """Nothing: the harness would ask the hub."""
            return {}

    source, options = model_source(lm.name)
    with loading_errors(lm.name):  # asked for its special tokens alone
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return Model(
        pretrained=lm.model,
        tokenizer=tokenizer,
        prefix_token_id=lm.tokenizer.bos_id,
        max_length=lm.max_length,
        batch_size=batch_size,
        mixed_precision_dtype=PRECISIONS.get(lm.autocast),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's remarks; its bars and errors stay."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
