"""The LM head: fused and plain, whole and in chunks, give the same numbers and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.distributions import Categorical

import llm_env.lm.log_probs as head
from llm_env.lm.causal_lm import load_causal_lm
from llm_env.lm.log_probs import FusedLogProbs, head_log_probs
from llm_env.lm.names import LoadSettings


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_log_probs_are_the_distributions_own(dtype: torch.dtype, temperature: float) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, 50)).to(dtype)
    targets, weights = torch.randint(50, (7,)), torch.randn(7)
    fused, plain = (logits.clone().requires_grad_() for _ in range(2))
    log_prob, entropy = FusedLogProbs.apply(fused, targets, temperature)
    want = Categorical(logits=plain.float() / temperature)
    torch.testing.assert_close(log_prob, want.log_prob(targets))
    torch.testing.assert_close(entropy, want.entropy())
    assert not entropy.requires_grad
    (log_prob * weights).sum().backward()
    (want.log_prob(targets) * weights).sum().backward()
    torch.testing.assert_close(fused.grad, plain.grad)


def test_a_forbidden_token_has_no_gradient_and_no_nan() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    log_prob, _ = FusedLogProbs.apply(logits, torch.tensor([2]), 1.0)
    log_prob.sum().backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
    assert logits.grad[0, 1] == 0  # type: ignore[index]


def test_the_fused_gradient_is_used_up() -> None:
    logits = torch.randn(2, 9, requires_grad=True)
    log_prob, _ = FusedLogProbs.apply(logits * 2, torch.tensor([1, 2]), 1.0)
    log_prob.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|second time"):
        log_prob.sum().backward()


def test_the_entropy_is_not_rounded_by_autocast() -> None:
    logits = torch.randn(5, 64) * 4
    with torch.autocast("cpu", torch.bfloat16):
        _, entropy = FusedLogProbs.apply(logits, torch.zeros(5, dtype=torch.long), 1.0)
    torch.testing.assert_close(entropy, Categorical(logits=logits).entropy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_chunks_change_neither_values_nor_gradients(
    model_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch, entropy_grad: bool
) -> None:
    lm = load_causal_lm(model_folder("llama"), LoadSettings("float32", "cpu"))
    hidden, targets = torch.randn(20, 32), torch.randint(1024, (20,))

    def gradients(chunk_elements: int, fused: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(head, "HEAD_CHUNK_ELEMENTS", chunk_elements)
        lm.model.zero_grad()
        states = hidden.clone().requires_grad_()
        log_probs, entropies = head_log_probs(lm, states, targets, 0.9, entropy_grad, fused)
        (log_probs.sin().sum() + (0.1 * entropies.sum() if entropy_grad else 0)).backward()
        weight = lm.model.get_output_embeddings().weight.grad
        return [log_probs, entropies, states.grad, weight.clone()]  # type: ignore[list-item]

    whole = gradients(2**25, True)
    for other in (gradients(3 * 1024, True), gradients(2**25, False)):
        for one, two in zip(whole, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
