"""Label tasks from real data sets, and the splits that a federation needs of any task."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fedfuse.config.data import DataConfig
from fedfuse.config.feddtpt import ExampleCounts
from fedfuse.data.partition import partition
from fedfuse.data.records import available_splits, load_records, source_name
from fedfuse.data.sample import Sample
from fedfuse.data.splits import build_splits
from fedfuse.data.templates import to_samples
from fedfuse.errors import check
from fedfuse.feddtpt.accuracy import balanced
from fedfuse.feddtpt.label_tasks import LabelledExample, Task, label_task

# Times as many examples as clients get are drawn for them: see ``partition_examples``.
POOL = 4
# Schemes of ``fedfuse.data.partition`` that give all clients equally many.
SCHEMES = ("iid", "dirichlet-equal")


@dataclass(frozen=True, slots=True)
class ExampleSplits:
    """Disjoint sets of examples.

    Attributes:
        private: ``D_k``, one list a client, which it keeps to itself.
        public: ``D_g``, held by every party, balanced between the labels.
        validation: the server's, to choose between prompts.
        test: held out for the reported accuracies.
    """

    private: list[list[LabelledExample]]
    public: list[LabelledExample]
    validation: list[LabelledExample]
    test: list[LabelledExample]


def partition_examples(
    task: Task,
    pool: Sequence[LabelledExample],
    num_partitions: int,
    per_client: int,
    scheme: str,
    alpha: float,
    seed: int,
) -> list[list[LabelledExample]]:
    """Give each client a few examples, the same number to all, out of a larger pool.

    The rest of the pool is not used, so that skew is not levelled by labels that run out: a pool
    of ``POOL`` times as many is enough.

    Args:
        task: task whose labels are the classes.
        pool: examples to draw from.
        num_partitions: number of clients.
        per_client: examples of each, at most.
        scheme: one of ``SCHEMES``; for this and the rest see ``data.partition.partition``.
        alpha: skew.
        seed: seed of all draws.

    Raises:
        FedfuseError: for another scheme; as ``partition``.
    """
    check("scheme", repr(scheme), " or ".join(SCHEMES), scheme in SCHEMES)
    labels = task.labels
    samples = [Sample(e.text, e.label, task.name, labels, labels.index(e.label)) for e in pool]
    parts = partition(samples, scheme, num_partitions, alpha, seed)
    return [
        [LabelledExample(sample.prompt, sample.answer) for sample in p[:per_client]] for p in parts
    ]


def read_task(
    source: str,
    template: str,
    counts: ExampleCounts,
    num_partitions: int,
    scheme: str,
    alpha: float,
    seed: int,
) -> tuple[Task, ExampleSplits]:
    """A task and its splits, disjoint, from one data set whose records have options.

    Args:
        source: a .jsonl file, a folder of them, a hub id; see ``load_records``.
        template: that makes an input of a record, empty for the default; see ``to_samples``.
        counts: examples in each split, at most; public and validation ones are balanced between the
            labels as far as the data allows.
        num_partitions: number of clients; for the rest see ``partition_examples``.
        scheme: one of ``SCHEMES``.
        alpha: skew.
        seed: seed of all draws.

    Raises:
        FedfuseError: for data that cannot be read, has no options or is too small.
    """
    config = DataConfig(
        source=source,
        partition="iid",
        private=0,
        public=1,
        test=counts.test,
        holdout=0,
        blind=0,
        questions=0,
        template=template,
    )
    whole = build_splits(config, 1, seed)
    train = [*whole.public, *whole.private[0]]
    task, examples = label_task(source_name(source), [*train, *whole.test])
    rest, test = examples[: len(train)], examples[len(train) :]
    public, rest = _cut(rest, counts.public)
    validation, rest = _cut(rest, counts.validation)
    needed = f"the {counts.public} public and {counts.validation} validation ones"
    expected = f"more training examples than {needed}"
    check(f"data set {source!r}", len(train), expected, rest)
    # The number of clients changes nothing but the private examples.
    pool = rest[: POOL * counts.private * num_partitions]
    private = partition_examples(task, pool, num_partitions, counts.private, scheme, alpha, seed)
    return task, ExampleSplits(private, public, validation, test[: counts.test])


def own_examples(
    task: Task, source: str, template: str, shared: Collection[LabelledExample]
) -> list[LabelledExample]:
    """All examples of a client's own data, but for those that all share.

    Args:
        task: task of the run, whose labels these must have.
        source: as for ``read_task``; of splits, the one named ``train``.
        template: see ``read_task``.
        shared: examples whose texts are left out.

    Raises:
        FedfuseError: for data that cannot be read, has other labels, or no text of its own.
    """
    records = load_records(source, "train" if available_splits(source) else "")
    _, examples = label_task(
        task.name, to_samples(records, domain=source_name(source), template=template)
    )
    unknown = sorted({example.label for example in examples} - set(task.labels))
    expected = f"the labels of task {task.name!r}, {', '.join(task.labels)}"
    check(f"data source {source!r}", ", ".join(unknown), expected, not unknown)
    known = {example.text for example in shared}
    own = [example for example in dict.fromkeys(examples) if example.text not in known]
    expected = "at least one text that is not in the public, validation or test set"
    check(f"data source {source!r}", "none", expected, own)
    return own


def _cut(
    examples: Sequence[LabelledExample], size: int
) -> tuple[list[LabelledExample], list[LabelledExample]]:
    """A balanced part, and the rest."""
    part = balanced(examples, size)
    taken = set(part)
    return part, [example for example in examples if example not in taken]
