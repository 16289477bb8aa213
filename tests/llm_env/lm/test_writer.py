"""Writing on in many slots at once: invariant 2, ends, buckets, and steps that are replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_env.lm.causal_lm import CausalLM, load_causal_lm
from llm_env.lm.decoding import CachedDecoder
from llm_env.lm.names import LoadSettings
from llm_env.lm.ragged_cache import row_bucket
from llm_env.lm.replay import StepRunner
from llm_env.lm.sampling import choose_tokens, draw
from llm_env.lm.writer import MaskRules, Outlook, Writer, Written
from tests.conftest import FAMILIES

N, STEPS, WIDTH = 6, 40, 80
PROMPTS = torch.tensor([9, 3, 0, 7, 25, 4])  # one slot is idle
ROOM = torch.tensor([40, 5, 0, 40, 12, 40])


def ids_and_outlook(vocab_size: int, goes_on: bool = False, **changes: Any) -> tuple[Tensor, Outlook]:
    """Random prefixes, and slots that end at their room or, now and then, with a token."""
    torch.manual_seed(0)
    is_end = torch.zeros(vocab_size, dtype=torch.bool)
    is_end[::40] = True
    return torch.randint(3, 1000, (N, WIDTH)), Outlook(STEPS, ROOM, is_end, goes_on)._replace(**changes)


def writer_of(lm: CausalLM) -> Writer:
    """Writes as a policy does whose values are the sums of the hidden states."""

    def choose(hidden: Tensor, drawn: Tensor | None, allowed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        logits = lm.logits(hidden).float()
        logits = logits if allowed is None else logits.masked_fill(~allowed, -1e30)
        return *choose_tokens(logits, drawn), hidden.float().sum(-1)

    decoder = CachedDecoder(lm, WIDTH)
    assert decoder.ready()
    return Writer(decoder, choose)


@torch.no_grad()
def by_full_forwards(lm: CausalLM, ids: Tensor, outlook: Outlook, drawn: Tensor) -> Written:
    """The same, one slot after another, each prefix read from its start."""
    shape = (outlook.steps, N)
    actions, acts, ended = torch.zeros(shape, dtype=torch.long), torch.zeros(shape).bool(), torch.zeros(shape).bool()
    values, log_probs = torch.zeros(shape), torch.zeros(shape)
    for slot in range(N):
        text = ids[slot, : PROMPTS[slot]].tolist()
        for t in range(min(outlook.steps, int(outlook.room[slot]))):
            hidden = lm.hidden(torch.tensor([text]), use_cache=False).last_hidden_state[:, -1]
            token, log_prob = choose_tokens(lm.logits(hidden).float(), drawn[t, slot : slot + 1])
            actions[t, slot], log_probs[t, slot], values[t, slot] = token, log_prob, hidden.sum()
            acts[t, slot] = True
            ended[t, slot] = outlook.is_end[token] | (t + 1 == outlook.room[slot])
            text.append(int(token))
            if ended[t, slot]:
                break
    return Written(actions, values, log_probs, acts, ended)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_full_forward_passes_give(model_folder: Callable[..., str], family: str) -> None:
    """Invariant 2: tokens, log-probs, values and ends, over rows that leave and columns that come."""
    lm = load_causal_lm(model_folder(family), LoadSettings("float32", "cpu"))
    ids, outlook = ids_and_outlook(lm.vocab_size)
    drawn = draw(STEPS, N)
    written = writer_of(lm).write(ids, PROMPTS, outlook, drawn)
    want = by_full_forwards(lm, ids, outlook, drawn)
    steps = len(written.actions)
    assert steps == int(want.acts.any(1).sum()) > 12
    for got, side in zip(written, want, strict=True):
        if got.is_floating_point():
            got, side = got * written.acts, side  # a slot that has ended has whatever it has
            torch.testing.assert_close(got, side[:steps], rtol=1e-3, atol=1e-3)
        else:
            assert torch.equal(got, side[:steps])


def test_rows_that_have_ended_leave_and_columns_come_in_buckets(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    writer = writer_of(lm)
    shapes: list[tuple[int, int]] = []
    read = writer.decoder.read_tokens
    monkeypatch.setattr(
        writer.decoder, "read_tokens", lambda t, c, width: shapes.append((len(t), width)) or read(t, c, width)
    )
    ids, outlook = ids_and_outlook(lm.vocab_size, is_end=torch.zeros(lm.vocab_size, dtype=torch.bool))
    writer.write(ids, PROMPTS, outlook, draw(STEPS, N))
    # Five slots; one ends after 5 tokens, one after 12: behind 25 tokens of a prompt, and then 9 at most.
    assert shapes == [(8, 32)] * 4 + [(4, 32)] * 3 + [(4, 64)] * 4 + [(4, 32)] * 12 + [(4, 64)] * 16
    assert [row_bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 17)] == [1, 2, 4, 4, 8, 8, 16, 24]


def test_the_decoder_goes_on_where_writing_stopped(model_folder: Callable[..., str]) -> None:
    """Nothing that was written is read again; and a shorter prefix, of a plan that was dropped, is not taken for it."""
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    writer = writer_of(lm)
    ids, outlook = ids_and_outlook(lm.vocab_size, steps=4, room=torch.tensor([9, 9, 0, 9, 9, 0]), goes_on=True)
    lengths = PROMPTS.clone()  # the last slot waits
    drawn = draw(4, N)
    written = writer.write(ids, lengths, outlook._replace(is_end=outlook.is_end & False), drawn)
    assert len(written.actions) == 4
    for t in range(4):
        rows = written.acts[t].nonzero()[:, 0]
        ids[rows, lengths[rows]] = written.actions[t, rows]
        lengths[rows] += 1
    read: list[int] = []
    handle = lm.trunk.register_forward_pre_hook(lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    got = writer.decoder.hidden(ids, lengths)
    handle.remove()
    assert read == [8]
    shorter = (lengths - 2).clamp(min=0)
    for now, states in ((lengths, got), (shorter, writer.decoder.hidden(ids, shorter))):
        torch.testing.assert_close(states, writer.decoder._uncached(ids, now), rtol=1e-3, atol=1e-3)


def test_writing_stops_at_the_first_end_where_slots_go_on(model_folder: Callable[..., str]) -> None:
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    ids, outlook = ids_and_outlook(lm.vocab_size, goes_on=True, is_end=torch.zeros(lm.vocab_size, dtype=torch.bool))
    written = writer_of(lm).write(ids, PROMPTS, outlook, draw(STEPS, N))
    assert len(written.actions) == 5  # the room of the second slot
    assert written.ended[-1].tolist() == [False, True, False, False, False, False]


def test_steps_behind_the_last_end_leave_no_trace(model_folder: Callable[..., str]) -> None:
    """On a GPU, where the host looks now and then; who asks about an earlier prefix gets its state, not a later one."""
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    ids, outlook = ids_and_outlook(lm.vocab_size, is_end=torch.zeros(lm.vocab_size, dtype=torch.bool))
    outlook, drawn = outlook._replace(room=torch.tensor([10, 5, 0, 10, 9, 10])), draw(STEPS, N)
    writer = writer_of(lm)
    writer.look_every = 8
    written = writer.write(ids, PROMPTS, outlook, drawn)
    assert torch.equal(written.actions, writer_of(lm).write(ids, PROMPTS, outlook, drawn).actions)
    assert len(written.actions) == 10
    lengths = PROMPTS.clone()
    for actions, acts in zip(written.actions[:-1], written.acts[:-1], strict=True):
        rows = acts.nonzero()[:, 0]
        ids[rows, lengths[rows]] = actions[rows]
        lengths += acts
    states = writer.decoder.hidden(ids, lengths)
    torch.testing.assert_close(states, writer.decoder._uncached(ids, lengths), rtol=1e-3, atol=1e-3)


def test_rules_of_the_vocabulary_are_applied_in_the_loop(model_folder: Callable[..., str]) -> None:
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    ids, outlook = ids_and_outlook(lm.vocab_size)
    allowed = torch.zeros(lm.vocab_size, dtype=torch.bool)
    allowed[::20] = True  # every second of them ends a turn
    short = torch.tensor([0, 3, 0, 7, 2, 39])
    masks = MaskRules(torch.stack([allowed, allowed & ~outlook.is_end]), short)
    written = writer_of(lm).write(ids, PROMPTS, outlook._replace(masks=masks), draw(STEPS, N))
    assert bool(allowed[written.actions[written.acts]].all())
    counts = written.acts.sum(0)
    assert bool((counts >= torch.minimum(short + 1, ROOM)).all())
    assert 7 < counts[3] < ROOM[3]  # every second token ends a turn that is long enough


class Stand:
    """Stands for a captured graph: what it replays is the step that it saw, with the tensors that it saw."""

    def __init__(self, spoil: Callable[[], object] = lambda: None, fails: bool = False) -> None:
        self.captured = self.replayed = 0
        self.spoil, self.fails = spoil, fails

    def __call__(self, step: Callable[[], None]) -> Callable[[], object]:
        self.captured += 1
        if self.fails:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        step()  # to warm up

        def replay() -> None:
            self.replayed += 1
            step()
            self.spoil()

        return replay


def rounds_with(lm: CausalLM, stand: Stand | None) -> list[Written]:
    """`rounds_of` a writer with a stand-in for capture, or without."""
    writer = writer_of(lm)
    if stand is not None:
        writer.runner = StepRunner(stand, "a model")
        writer.decoder.keeps_storage = True
    return rounds_of(writer)


def rounds_of(writer: Writer) -> list[Written]:
    """Three rounds, with weights that change in place between them, and are put back afterwards."""
    lm = writer.decoder.lm
    torch.manual_seed(1)
    before = [p.detach().clone() for p in lm.model.parameters()]
    rounds = []
    with torch.no_grad():
        for seed in range(3):
            ids, outlook = ids_and_outlook(lm.vocab_size)
            rounds.append(writer.write(ids + seed, PROMPTS, outlook, draw(STEPS, N)))
            writer.decoder.clear()
            for parameter in lm.model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        for parameter, value in zip(lm.model.parameters(), before, strict=True):
            parameter.copy_(value)
    return rounds


def assert_same(one: list[Written], other: list[Written]) -> None:
    for a, b in zip(one, other, strict=True):
        for got, want in zip(a, b, strict=True):
            assert torch.equal(got, want)


def test_replayed_steps_write_the_same_and_live_through_new_weights(
    model_folder: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    stand = Stand()
    assert_same(rounds_with(lm, stand), rounds_with(lm, None))
    assert stand.replayed > 3 * stand.captured
    assert not caplog.records


@pytest.mark.parametrize("fails", [False, True])
def test_captured_steps_are_left_where_one_disagrees(
    fails: bool, model_folder: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """As a graph that reads what was there when it was captured: one line says so, and what is written stays right."""
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    stand = Stand(fails=fails)

    def stale() -> None:
        desk = writers[0]._desk
        desk.log_probs[desk.at] += 0.01

    writers: list[Any] = []
    real = Writer.__init__

    def noted(self: Writer, *args: Any) -> None:
        real(self, *args)
        writers.append(self)

    stand.spoil = stale
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Writer, "__init__", noted)
        got = rounds_with(lm, stand)
    assert_same(got, rounds_with(lm, None))
    assert stand.captured == 1
    assert len(caplog.records) == 1
    assert ("operation not permitted" if fails else "disagrees") in caplog.text


def test_other_addresses_are_captured_anew() -> None:
    stand = Stand()
    runner, state = StepRunner(stand, "a model"), [torch.zeros(2)]
    for addresses in ((1, 2), (1, 2), (1, 3)):
        runner.expect(addresses)
        runner("key", lambda: state[0].add_(1), state)  # type: ignore[arg-type]
    assert state[0].tolist() == [3, 3]
    assert stand.captured == 2


def test_the_longest_slot_may_end_anywhere(model_folder: Callable[..., str]) -> None:
    """Its last token is read beside the others, which stand in columns before it, where its row does not leave."""
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    lengths = torch.tensor([25, *[5] * 7])  # seven of eight rows are as many as eight
    ids = torch.randint(3, lm.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(lm.vocab_size, dtype=torch.bool)
    for tokens in range(6, 11):  # from column 30 on, over the end of a bucket
        outlook = Outlook(STEPS, torch.tensor([tokens, *[STEPS] * 7]), nothing, goes_on=False)
        written = writer_of(lm).write(ids, lengths, outlook, draw(STEPS, 8))
        assert int(written.acts[:, 0].sum()) == tokens
