"""Label tasks from real data sets, split as a federation needs them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fedfuse.builtin.prompt_world import POOL, WorldSize
from fedfuse.data.records import available_splits, load_records, source_name
from fedfuse.data.splits import build_splits
from fedfuse.data.templates import to_samples
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.accuracy import balanced
from fedfuse.feddtpt.example_splits import ExampleSplits, deal
from fedfuse.feddtpt.label_tasks import Example, Task, label_task


def read_task(
    source: str,
    template: str,
    size: WorldSize,
    num_partitions: int,
    scheme: str,
    alpha: float,
    seed: int,
) -> tuple[Task, ExampleSplits]:
    """A task and its splits, disjoint, from one data set whose records have options.

    Args:
        source: a .jsonl file, a folder of them, a hub id; see ``load_records``.
        template: that makes an input of a record, empty for the default; see ``to_samples``.
        size: examples in each split, at most; public and validation ones are balanced between the
            labels as far as the data allows.
        num_partitions: number of clients.
        scheme: see ``deal``.
        alpha: see ``deal``.
        seed: of all draws.

    Raises:
        FedfuseError: for data that cannot be read, has no options or is too small.
    """
    whole = build_splits(
        source,
        num_partitions=1,
        scheme="iid",
        alpha=1.0,
        seed=seed,
        public_samples=1,
        test_samples=size.test,
        holdout_samples=0,
        question_samples=0,
        private_samples=0,
        template=template,
    )
    train = [*whole.public, *whole.private[0]]
    task, examples = label_task(source_name(source), [*train, *whole.test])
    rest, test = examples[: len(train)], examples[len(train) :]
    public, rest = _cut(rest, size.public)
    validation, rest = _cut(rest, size.validation)
    if not rest:
        raise FedfuseError(
            f"data set {source!r} has {len(train)} examples to train on; allowed: more than the "
            f"{size.public} public and {size.validation} validation ones"
        )
    # The number of clients changes nothing but the private examples.
    pool = rest[: POOL * size.per_client * num_partitions]
    private = deal(task, pool, num_partitions, size.per_client, scheme, alpha, seed)
    return task, ExampleSplits(private, public, validation, test[: size.test])


def own_examples(
    task: Task, source: str, template: str, shared: Collection[Example]
) -> list[Example]:
    """The private examples of a client that has data of its own: all of it, but for what all share.

    Args:
        task: of the run, whose labels these must have.
        source: as for ``read_task``; of what has splits, the one named ``train``.
        template: see ``read_task``.
        shared: examples whose texts are left out.

    Raises:
        FedfuseError: for data that cannot be read, has other labels, or no text of its own.
    """
    records = load_records(source, "train" if available_splits(source) else "")
    _, examples = label_task(
        task.name, to_samples(records, domain=source_name(source), template=template)
    )
    if unknown := {example.label for example in examples} - set(task.labels):
        raise FedfuseError(
            f"data source {source!r} has the labels {', '.join(sorted(unknown))}; "
            f"allowed: those of task {task.name!r}, {', '.join(task.labels)}"
        )
    known = {example.text for example in shared}
    own = [example for example in dict.fromkeys(examples) if example.text not in known]
    if not own:
        raise FedfuseError(
            f"data source {source!r} has no text that is not in the public, validation or test "
            "set; allowed: at least one"
        )
    return own


def _cut(examples: Sequence[Example], size: int) -> tuple[list[Example], list[Example]]:
    """A balanced part, and the rest."""
    part = balanced(examples, size)
    taken = set(part)
    return part, [example for example in examples if example not in taken]
