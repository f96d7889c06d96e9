"""FedMKT: one round as functions of models, knowledge and settings; no messages, no files.

Fan et al., "FedMKT: Federated Mutual Knowledge Transfer for Large and Small Language Models",
COLING 2025, arXiv 2406.02224. Algorithm 1; the step numbers below are its own::

    for each client k:  loss, state_k, S_k = local_step(g_k, D_k, D_p, ...)         # steps 1 to 3
    distilled, S_0 = server_step(f, D_p, S_1 ... S_K, rule, ...)                    # steps 4 to 8
    for each client k:  distilled = client_step(g_k, D_p, D_k, S_0, rule, ...)      # steps 9 to 11

Symbols: f the server's model (LLM) and g_k client k's (SLM), each a ``LocalModel``; D_p the public
samples, D_k private ones; S_k and S_0 ``KnowledgeSet``s; lambda is ``Objective.label_weight``; E
and R are ``TrainingConfig.steps``, counted in optimizer steps. A function trains the adapter of its
model in place; all else goes in by its arguments and out by its result.

Differs from the paper: see ``fedfuse.distillation.loss`` (tail), ``fedfuse.alignment.projection``
(tokens that collide, rows without a partner), ``fedfuse.knowledge.top_p`` (adaptive k),
``fedfuse.fusion.rules`` (rules beside DualMinCE), ``replay`` and ``acceptance_seed``; the paper's
way can be chosen in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float32
from numpy import ndarray

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.knowledge import KnowledgeConfig
from fedfuse.config.training import TrainingConfig
from fedfuse.data.blind import BlindSamples
from fedfuse.distillation.optimizer_state import TrainingState
from fedfuse.distillation.training import MAX_TOKENS
from fedfuse.errors import FedfuseError
from fedfuse.evaluation.acceptance import AcceptanceResult
from fedfuse.evaluation.options import OptionLogprobs
from fedfuse.fusion.evidence import BlindQuestions
from fedfuse.fusion.fuser import AlignedTeacher, FusedTargets, KnowledgeFuser
from fedfuse.fusion.likeness import Prompts
from fedfuse.fusion.rules import Rule
from fedfuse.fusion.weights import Weights
from fedfuse.knowledge.aligner import KnowledgeAligner
from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.dataset import TokenizedDataset
from fedfuse.tokenizers.tokenizer import TextTokenizer

OnStep = Callable[[int, float], None]
Refuse = Callable[[str, FedfuseError], None]


@dataclass(frozen=True, slots=True)
class KnowledgeSet:
    """One model's knowledge of the public samples, S_k in the paper.

    Attributes:
        knowledge: losses and sparse next-token distributions.
        tokenizer: tokenizer of its rows.
        context_loss: ``[N]`` nats per byte of the samples' contexts, for rules that read it.
        options: log-probabilities of the options of blind questions, where some were asked.
    """

    knowledge: Knowledge
    tokenizer: TextTokenizer
    context_loss: Float32[ndarray, " samples"] | None = None
    options: OptionLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Distilled:
    """Result of a distillation phase.

    Attributes:
        loss: final training loss, nats per label row.
        state: training state of the next phase; the one before where the phase was rolled back.
        teachers: names of columns 1 to C - 1 of the weights.
        weights: ``[N, C]`` trust per public sample; column 0 is the learning model itself.
        acceptance: result of the acceptance test, where there is one.
    """

    loss: float
    state: TrainingState | None
    teachers: list[str]
    weights: Weights
    acceptance: AcceptanceResult | None


def local_step(
    model: LocalModel,
    private: TokenizedDataset,
    public: TokenizedDataset,
    k: int,
    training: TrainingConfig,
    *,
    seed: int,
    state: TrainingState | None = None,
    with_contexts: bool = False,
) -> tuple[float, TrainingState, KnowledgeSet]:
    """Steps 1 to 3, of a client: train on private data, compute S_k.

    Args:
        model: the client's, g_k.
        private: D_k.
        public: D_p.
        k: entries of a distribution.
        training: of the local phase.
        seed: of the local phase; one for all rounds.
        state: training state after the local phase before.
        with_contexts: compute the context losses too.

    Returns:
        final loss, training state and S_k, which the client sends (step 3). Of a model that does
        not learn, the loss of the public labels, nats per label row, and no state.
    """
    if not model.learns:
        knowledge, context_loss = model.knowledge_with_contexts(k, public)
        sent = KnowledgeSet(knowledge, model.tokenizer, context_loss if with_contexts else None)
        return float(-knowledge.label_logprob.mean()), {}, sent
    # Step 1: train the adapter on D_k with the task loss (Eq. 4).
    loss, state = model.learn(private, training, seed=seed, state=state)
    # Step 2: losses and top-k distributions on D_p.
    if with_contexts:
        knowledge, context_loss = model.knowledge_with_contexts(k, public)
        return loss, state, KnowledgeSet(knowledge, model.tokenizer, context_loss)
    return loss, state, KnowledgeSet(model.knowledge(k, public), model.tokenizer)


def server_step(
    model: LocalModel,
    public: TokenizedDataset,
    received: Iterable[tuple[str, KnowledgeSet]],
    rule: Rule,
    aligner: KnowledgeAligner,
    config: KnowledgeConfig,
    training: TrainingConfig,
    *,
    seed: int,
    state: TrainingState | None = None,
    reads_contexts: bool = False,
    blind: BlindSamples | None = None,
    acceptance_seed: int | None = None,
    store: Callable[[AlignedTeacher], AlignedTeacher] = lambda teacher: teacher,
    refuse: Refuse | None = None,
    on_step: OnStep | None = None,
) -> tuple[Distilled, KnowledgeSet]:
    """Steps 4 to 8, of the server: align, select, distil, compute S_0.

    ``received`` holds verified S_k by client, as they come; ``store`` may put each aligned teacher
    into a file; ``refuse`` gets the error of a client that cannot be aligned (default: raise it).
    ``rule`` selects; with ``reads_contexts`` it sees context losses and hidden states. With
    ``blind`` samples, about which all of ``received`` were asked, these judge candidates. With
    ``acceptance_seed`` a phase that makes a held-out domain worse is rolled back.
    """
    contexts = model.view_contexts(public) if reads_contexts else None
    fuser = KnowledgeFuser(aligner, model.knowledge(config.k, public), contexts)
    if blind:
        fuser.ask(*ask(model, public, blind))
    # Step 4: align every client's tokens to the server's (MinED).
    aligned = dict(_align_all(fuser, received, store, refuse))
    # Step 5: select by the rule (Algorithm 2: DualMinCE). By name: ties go to the first.
    clients = sorted(aligned)
    teachers = [aligned[client] for client in clients]
    targets = fuser.fuse(teachers, rule, config.k, tail=config.tail)
    # Step 6: train on labels and selected distributions (Eq. 5, 7, 9).
    distilled = _distil(
        model, public, targets, clients, training, seed, state, acceptance_seed, on_step=on_step
    )
    # Step 7: S_0 with the updated model; the server sends it (step 8).
    return distilled, KnowledgeSet(model.knowledge(config.k, public), model.tokenizer)


def ask(
    model: LocalModel, public: TokenizedDataset, blind: BlindSamples
) -> tuple[BlindQuestions, OptionLogprobs]:
    """Blind questions as the learning model sees them, and its own answers."""
    asked, shown = model.encode(blind.asked), model.encode(blind.shown)
    prompts = [Prompts(data.samples, model.context_states(data)) for data in (asked, public)]
    questions = BlindQuestions(prompts[0], prompts[1], model.losses(shown))
    return questions, model.option_logprobs(blind.asked)


def client_step(
    model: LocalModel,
    public: TokenizedDataset,
    received: KnowledgeSet,
    rule: Rule,
    aligner: KnowledgeAligner,
    config: KnowledgeConfig,
    training: TrainingConfig,
    *,
    seed: int,
    state: TrainingState | None = None,
    replay: TokenizedDataset | None = None,
    reads_contexts: bool = False,
    context_loss: Float32[ndarray, " samples"] | None = None,
    beside_base: bool = False,
    acceptance_seed: int | None = None,
) -> Distilled:
    """Steps 9 to 11, of a client: align S_0, select, distil.

    ``received`` is the verified S_0. ``replay`` adds the label loss of private samples at every
    step (not in the paper). With ``reads_contexts`` the rule sees context losses and hidden states;
    ``context_loss`` is the model's own where it is known. With ``beside_base`` the server is
    believed only where it knows more than the model's base does. See also ``server_step``.
    """
    contexts = model.view_contexts(public, context_loss) if reads_contexts else None
    fuser = KnowledgeFuser(aligner, model.knowledge(config.k, public), contexts)
    if beside_base:
        fuser.compare_with_base(public.samples, model.base_losses(public))
    # Step 9: align the server's tokens to the client's.
    server = fuser.align_teacher(received.knowledge, received.tokenizer, received.context_loss)
    # Step 10: keep the samples on which the rule trusts the server (DualMinCE: smaller loss).
    targets = fuser.fuse([server], rule, config.k, tail=config.tail)
    # Step 11: train on labels and selected distributions (Eq. 6, 8, 10).
    return _distil(
        model, public, targets, ["server"], training, seed, state, acceptance_seed, replay=replay
    )


def _align_all(
    fuser: KnowledgeFuser,
    received: Iterable[tuple[str, KnowledgeSet]],
    store: Callable[[AlignedTeacher], AlignedTeacher],
    refuse: Refuse | None,
) -> Iterator[tuple[str, AlignedTeacher]]:
    """Each client's knowledge on the model's rows, one at a time."""
    for client, sent in received:
        try:
            teacher = fuser.align_teacher(
                sent.knowledge, sent.tokenizer, sent.context_loss, sent.options
            )
        except FedfuseError as error:
            if refuse is None:
                raise
            refuse(client, error)
        else:
            yield client, store(teacher)


def _distil(
    model: LocalModel,
    public: TokenizedDataset,
    targets: FusedTargets,
    teachers: list[str],
    training: TrainingConfig,
    seed: int,
    state: TrainingState | None,
    acceptance_seed: int | None,
    *,
    replay: TokenizedDataset | None = None,
    on_step: OnStep | None = None,
) -> Distilled:
    """Train on labels and fused targets, with or without an acceptance test."""
    weights = targets.weights
    options = {"seed": seed, "teacher": targets.teacher, "replay": replay, "state": state}
    learn = partial(model.learn, public, training, on_step=on_step, **options)
    if acceptance_seed is None:
        loss, learned = learn()
        return Distilled(loss, learned, teachers, weights, None)
    (loss, learned), acceptance = model.train_with_rollback(learn, acceptance_seed)
    if not acceptance.keep:
        # What was learned is gone, but not that memory ran out.
        memory = {key: value for key, value in learned.items() if key == MAX_TOKENS}
        return Distilled(loss, {**(state or {}), **memory} or None, teachers, weights, acceptance)
    return Distilled(loss, learned, teachers, weights, acceptance)
