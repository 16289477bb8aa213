"""A mini-batch, a scoring pass and a step of decoding with networks without weights, and what each would need in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from agents.memory.formulas import Shape, cache_bytes, cache_columns, kept_bytes, work_bytes
from agents.memory.meter import Meter
from agents.memory.networks import Networks, Sizes
from agents.memory.weightless import nbytes, trained, zeros
from agents.policies.critic import CriticNetwork
from agents.policies.rollout_scores import SCORE_TOKENS
from agents.policies.trpo import LLMTrustRegionPolicy
from llm_env.lm.causal_lm import CausalLM, attention_span
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.log_probs import HEAD_CHUNK_ELEMENTS, head_log_probs
from llm_env.lm.packed_attention import packed_states
from llm_env.lm.packing import PackedBatch, pack
from llm_env.lm.ragged_cache import RaggedLayer, row_bucket
from llm_env.lm.sampling import sample_tokens


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's own report of an operation that has no rule for shapes, for the duration of a `with` block.

    Raises:
        RuntimeError: an operation reads data, which torch 2.10 only warns of.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Accessing the data pointer of FakeTensor")
            yield
    except UserWarning as warning:
        raise RuntimeError(str(warning)) from warning
    finally:
        logger.setLevel(level)


@dataclasses.dataclass(frozen=True)
class Update:
    """What a mini-batch's update needs, in bytes.

    Attributes:
        most: By the kinds of `Meter`, at the peak of forward and backward pass; gradients that are there by then are in it.
        gradients: Gradients of all weights at its end.
        optimizer: The optimizer's states from then on.
        of_critic: Those of the critic's weights among them.
        counted: Whether `most` was counted; else formulas estimate it.
    """

    most: Counter[str]
    gradients: int
    optimizer: int
    of_critic: int
    counted: bool


def texts(count: int, sizes: Sizes) -> PackedBatch:
    """Texts of the longest kind, which have nothing in common; all of a response's tokens are scored."""
    sequences = [[i] + [0] * (sizes.longest - 1) for i in range(count)]
    return pack(sequences, [range(sizes.longest - sizes.response, sizes.longest)] * count, "cpu")


def with_masks(batch: PackedBatch, networks: Networks) -> PackedBatch:
    """The batch with masks, where the policy is told of some."""
    if not networks.task.masks.active:
        return batch
    bits = zeros(len(batch.targets), -(-networks.lm.vocab_size // 8), dtype=torch.uint8)
    return dataclasses.replace(batch, masks=bits)


def _texts_that_tell(networks: Networks, sizes: Sizes) -> int:
    """How many texts of a mini-batch are read: of micro-batches two, the second beside the first one's gradients."""
    settings = getattr(networks.policy, "settings", None)
    tokens = None if settings is None else settings.micro_batch_tokens
    return sizes.batch if tokens is None else min(sizes.batch, 2 * max(1, tokens // sizes.longest))


def update(networks: Networks, sizes: Sizes) -> Update:
    """One mini-batch's forward and backward pass, and the optimizer's step."""
    policy = networks.policy
    parameters = trained(policy.parameters())
    meter = Meter(networks.lm.vocab_size, [p.shape for p in parameters])
    batch = with_masks(texts(_texts_that_tell(networks, sizes), sizes), networks)
    policy.set_training_mode(True)
    counted, most = True, meter.most
    try:
        with _quietly(), meter:
            _loss(networks, batch).backward()
        most = meter.most
    except RuntimeError:  # the way through the model depends on values, or an operation has no rule for shapes: experts
        counted, most = False, _estimate(networks, sizes)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    gradients = nbytes(p.grad for p in parameters if p.grad is not None)
    if isinstance(policy, LLMTrustRegionPolicy):  # TRPO's own step moves the actor
        for parameter in policy.actor.parameters():
            parameter.grad = None
    policy.optimizer.step()
    of_critic = {id(p) for p in networks.critic_parameters()}
    states = [(id(p) in of_critic, value) for p, of in policy.optimizer.state.items() for value in of.values()]
    tensors = [(is_critics, value) for is_critics, value in states if isinstance(value, Tensor)]
    policy.optimizer.zero_grad()
    critics = nbytes(value for is_critics, value in tensors if is_critics)
    return Update(most, gradients, nbytes(value for _, value in tensors), critics, counted)


def _estimate(networks: Networks, sizes: Sizes) -> Counter[str]:
    """What `update` would count, by formulas."""
    policy, settings = networks.policy, getattr(networks.policy, "settings", None)
    tokens, scored = sizes.batch * sizes.longest, sizes.batch * sizes.response
    if settings is not None and settings.micro_batch_tokens is not None:
        part = max(min(tokens, settings.micro_batch_tokens), sizes.longest)
        tokens, scored = part, scored * part // tokens
    element = 2 if policy.mixed_precision == "bf16" else 4
    kept = kept_bytes(networks.lm.config, tokens, element, bool(settings and settings.gradient_checkpointing))
    passes = 1 + isinstance(getattr(policy, "critic", None), CriticNetwork)
    vocab = networks.lm.vocab_size
    logits = 3 * 4 * vocab * min(scored, max(1, HEAD_CHUNK_ELEMENTS // vocab))
    return Counter({"activations": passes * kept, "logits": logits})


def _loss(networks: Networks, batch: PackedBatch) -> Tensor:
    """A loss that asks the networks for what the algorithm's asks for."""
    policy, kl = networks.policy, networks.task.kl
    if networks.is_q_network:
        with torch.no_grad():
            policy.q_net_target(batch)
        return policy.q_net(batch)[..., :1].sum()
    if kl.in_loss and kl.estimator == "exact":
        outputs = policy.evaluate_actions_and_kl(batch, networks.task.reference)
    else:
        outputs = policy.evaluate_actions(batch, batch.targets)
    return sum(o.sum() for o in outputs if o.requires_grad)


class Asked(NamedTuple):
    """A model that is asked about a rollout.

    Attributes:
        part: The plan's name of it: ``critic``, ``reference`` or ``reward model``; ``actor`` with a critic that is no network.
        weights: Bytes of its parameters and buffers.
        most: What asking it needs beside them, by the kinds of `Meter`.
    """

    part: str
    weights: int
    most: Counter[str]

    @property
    def needs(self) -> int:
        """Bytes that asking it needs, without its weights."""
        return sum(self.most.values())


def most_needing(asked: Sequence[Asked]) -> Counter[str]:
    """What the one that needs most needs, where all weights are there all the time."""
    return max(asked, key=lambda one: one.needs).most


def asked(networks: Networks, sizes: Sizes) -> list[Asked]:
    """The models that are asked about a rollout, one after the other."""
    policy, task = networks.policy, networks.task
    batch = with_masks(texts(min(sizes.episodes, max(1, SCORE_TOKENS // sizes.longest)), sizes), networks)
    questions: list[tuple[str, nn.Module, Callable[[], Any]]] = []
    if not networks.is_q_network and policy.rescores_values:
        part = ("critic", policy.critic) if policy.critic.reads_text else ("actor", policy.actor)
        if policy.rescores_log_probs or not policy.critic.reads_text:
            questions.append((*part, lambda: policy._evaluate(batch)))
        else:
            questions.append((*part, lambda: policy.critic(batch, None)))

    def reference() -> Any:
        with task.reference.frozen() as lm:
            states = packed_states(lm.trunk, batch)[batch.index]
            return head_log_probs(lm, states, batch.targets, task.settings.temperature)

    questions.append(("reference", task.model.lm.model, reference))
    ids = batch.input_ids.view(len(batch.lengths), -1)
    questions += [("reward model", model, functools.partial(model, input_ids=ids)) for model in networks.rewards]
    answers = []
    for name, model, ask in questions:
        meter = Meter(networks.lm.vocab_size)
        counts = meter.most
        try:
            with _quietly(), torch.no_grad(), _precision(policy), meter:
                ask()
            counts = meter.most
        except RuntimeError:  # as in `update`
            counts = Counter({"activations": work_bytes(networks.lm.config, len(batch.input_ids), 4)})
        answers.append(Asked(name, nbytes([*model.parameters(), *model.buffers()]), counts))
    return answers


def decode(lm: CausalLM, networks: Networks, sizes: Sizes) -> tuple[Counter[str], int]:
    """What it needs to read all prompts and write on to the longest response, in bytes.

    Args:
        lm: The model that decodes.
        networks: The run's.
        sizes: What the process works on.

    Returns:
        The most that there is of each kind, the cache among it, and the cache's share.
    """
    meter = Meter(networks.lm.vocab_size)
    layers: list[RaggedLayer] = []
    cached = networks.decoder.use_cache and attention_span(lm.config) >= sizes.longest
    try:
        with _quietly(), torch.no_grad(), _precision(networks.policy), meter:
            states = _read_with_cache(lm, sizes, layers) if cached else _read(lm, sizes)
            sample_tokens(lm.logits(states).float())
        most = meter.most
    except (RuntimeError, ValueError):  # as in `update`; or the model wants another mask
        work = work_bytes(lm.config, sizes.slots * sizes.longest, lm.model.dtype.itemsize)
        most = Counter({"activations": work + cache_of(lm, sizes)})
        return most, cache_of(lm, sizes)
    return most, nbytes(t for layer in layers for t in (layer.keys, layer.values))


def _read(lm: CausalLM, sizes: Sizes) -> Tensor:
    """Reads whole texts, as it is done without a cache at each step; states (slots, H)."""
    states: Tensor = lm.hidden(zeros(sizes.slots, sizes.longest), use_cache=False).last_hidden_state
    return states[:, -1]


def _read_with_cache(lm: CausalLM, sizes: Sizes, layers: list[RaggedLayer]) -> Tensor:
    """Reads prompts into a cache, and the last of all tokens; states (rows, H).

    Args:
        lm: The model that decodes.
        sizes: What the process works on.
        layers: Empty; the cache comes into it.
    """
    decoder = CachedDecoder(lm, sizes.longest)
    columns, rows = cache_columns(sizes.prompt, sizes.longest), row_bucket(sizes.slots)
    cache: Any = DynamicCache(config=lm.config)
    lm.hidden(zeros(sizes.slots, sizes.prompt), past_key_values=cache, use_cache=True)
    layers += [RaggedLayer(decoder._positions) for _ in cache.layers]
    for layer, filled in zip(layers, cache.layers, strict=True):
        layer.store(torch.arange(sizes.slots), filled.keys, filled.values, rows, columns)
    del cache, filled
    decoder._layers = layers
    # The last step looks at the most columns.
    return decoder.read_tokens(zeros(rows), zeros(rows) + sizes.longest - 1, decoder.columns_for(sizes.longest - 1))


def cache_of(lm: CausalLM, sizes: Sizes) -> int:
    """Bytes of a model's key-value cache, by its configuration."""
    shape = Shape.of(lm.config)
    columns, element = cache_columns(sizes.prompt, sizes.longest), lm.model.dtype.itemsize
    return cache_bytes(sizes.slots, columns, shape.layers, shape.kv_heads, shape.head_size, element)


def _precision(policy: Any) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic of a policy outside of training."""
    autocast = getattr(policy, "_autocast", contextlib.nullcontext)
    return autocast()  # type: ignore[no-any-return]
