"""Which contenders there are, and which of them run which cases together."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.case import Case

VARIANTS = {
    # contender: argument of benchmarks/ours.py
    "ours": "ppo",
    "stepped": "ppo+stepped",
    "unshared": "ppo+unshared",
    "engine-transformers": "ppo+engine=transformers",
    "engine-vllm": "ppo+engine=vllm",
    "ours-full": "ppo+critic=reward_model",
    "naive": "ppo+naive",
    "a2c": "a2c",
    "a2c-naive": "a2c+naive",
    "trpo": "trpo",
    "trpo-naive": "trpo+naive",
}
DPO = {"dpo": "ours", "dpo-trl": "trl"}
DECODE = {"decode": "ours", "decode-transformers": "transformers", "decode-vllm": "vllm", "reading": "reading"}
CONTENDERS = (*VARIANTS, "trl-small", "trl-full", "floor", *DPO, *DECODE)


@dataclass(frozen=True)
class Suite:
    """Cases, who runs them, and what the picture shows.

    Attributes:
        cases: Cases, in the order in which they run.
        contenders: Names of the contenders that run each case.
        curve: Field of `Case` on the picture's x axis; None draws bars.
    """

    cases: tuple[Case, ...]
    contenders: tuple[str, ...]
    curve: str | None = None


SUITES = {
    "quick": Suite((Case(), Case(response=128, lengths="spread")), ("ours", "floor", "naive")),
    "floor": Suite(
        tuple(Case(model="135m", prompt=64, response=64, precision=p) for p in ("no", "bf16")), ("floor", "ours")
    ),
    "naive": Suite(tuple(Case(prompt=n, response=n) for n in (16, 32, 64, 128, 256)), ("ours", "naive"), "response"),
    "trl": Suite(
        (
            Case(model="135m", prompt=64, response=64),
            Case(model="135m", prompt=32, response=128, lengths="spread"),
        ),
        ("ours", "trl-small", "trl-full", "floor"),
    ),
    "length": Suite(
        tuple(Case(prompt=32, response=n, batch=4) for n in (64, 128, 256, 512, 1024)), ("ours", "floor"), "response"
    ),
    "envs": Suite(
        tuple(Case(prompt=32, response=64, batch=n, mini_batches=1) for n in (1, 2, 4, 8, 16, 32, 64)),
        ("ours", "floor"),
        "batch",
    ),
    "groups": Suite(
        (
            Case(batch=64, prompt=64, response=32, group=8, lengths="spread"),
            Case(model="30m", batch=16, prompt=128, response=64, group=8, lengths="spread"),
        ),
        ("ours", "unshared", "floor"),
    ),
    "algorithms": Suite((Case(prompt=16, response=16),), ("ours", "naive", "a2c", "a2c-naive", "trpo", "trpo-naive")),
    "dpo": Suite(
        (
            Case(batch=32, prompt=16, response=32, lengths="spread", mini_batches=1),
            Case(model="135m", batch=8, prompt=16, response=64, lengths="spread", mini_batches=1, epochs=1),
        ),
        ("dpo", "dpo-trl"),
    ),
    "engines": Suite(
        (Case(batch=16), Case(model="30m", prompt=32, response=64)),
        ("ours", "stepped", "engine-transformers", "engine-vllm", "floor"),
    ),
    "decode": Suite(
        tuple(Case(batch=n, prompt=16, response=64) for n in (1, 2, 4, 8, 16, 32, 64)),
        ("decode", "decode-transformers", "decode-vllm", "reading"),
        "batch",
    ),
    "gpu": Suite(
        (
            Case(model="135m", batch=64, prompt=128, response=128, device="cuda"),
            Case(model="135m", batch=64, prompt=128, response=128, device="cuda", precision="bf16"),
            Case(model="1b", batch=64, prompt=128, response=128, device="cuda", precision="bf16"),
        ),
        ("ours", "trl-small", "trl-full", "floor"),
    ),
}
