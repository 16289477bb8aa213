"""Breaks the code in one small way after another, and says which of them the tests notice.

    python tests/mutations.py                     all of them, against the fast tier
    python tests/mutations.py --tier all          the slow tests too
    python tests/mutations.py --only kl           those with "kl" in their names
    python tests/mutations.py --list

A test that passes on broken code guards nothing. Each mutation below is a mistake that someone could make, and names the tests
that should see it; only these are run. The code is broken in a copy of the repository, never in the working tree. The exit
status is 1 if a mutation is missed, or if its text is no longer in its file: then look for where the idea went, and move
the mutation there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("llm_env", "agents", "scripts", "tests", "examples", "README.md", "pyproject.toml")
FAILED = 1  # pytest's exit status where tests ran and one failed; others say that they could not be run
LEARNING = "tests/test_learning.py::test_each_algorithm_learns_to_write_words"


class Mutation(NamedTuple):
    """One mistake.

    Attributes:
        name: What is wrong then.
        file: Where, relative to the repository.
        text: What stands there once.
        broken: What stands there instead.
        tests: Test files or node ids, of which one must fail.
    """

    name: str
    file: str
    text: str
    broken: str
    tests: tuple[str, ...]


_DECODING = "llm_env/lm/decoding.py"
_DECODING_TESTS = ("tests/llm_env/lm/test_decoding.py",)
_MASK_TESTS = ("tests/llm_env/test_masks.py",)
_FORMULA_TESTS = ("tests/llm_env/reward/test_formula.py",)
_ADVANTAGE_TESTS = ("tests/agents/rollouts/test_advantages.py",)
_RESUME_TESTS = (
    "tests/agents/runs/test_checkpoint.py",
    "tests/agents/algorithms/test_table.py::test_a_resumed_run_equals_an_uninterrupted_one",
)

DECODING = [
    Mutation(
        "a row's cache is used for another text of the same length",
        _DECODING,
        "((ids[:, :width] == self._tokens[:, :width]) | ~inside).all(1) & (self._lengths > 0)",
        "self._lengths > 0",
        _DECODING_TESTS,
    ),
    Mutation(
        "the cache outlives a change of the weights",
        _DECODING,
        "        self._stale = True\n",
        '        if getattr(self, "_n_rows", 0):\n            return\n        self._stale = True\n',
        (*_DECODING_TESTS, "tests/test_invariants.py::test_at_learning_rate_zero_the_ratio_is_one"),
    ),
    Mutation(
        "rows change places when the cache is compacted",
        _DECODING,
        "self._row_of_slot[used] = torch.arange(n_used)",
        "self._row_of_slot[used] = torch.arange(n_used).flip(0)",
        _DECODING_TESTS,
    ),
    Mutation(
        "rows that ride along lose their last token",
        _DECODING,
        "columns[self._row_of_slot[others]] = self._lengths[others]",
        "columns[self._row_of_slot[others]] = self._lengths[others] - 1",
        _DECODING_TESTS,
    ),
    Mutation(
        "a token is predicted from itself",
        "llm_env/lm/packing.py",
        "torch.arange(p + s - 1, p + len(t) - 1)",
        "torch.arange(p + s, p + len(t)).clamp(max=sum(read) - 1)",
        ("tests/llm_env/lm/test_packing.py",),
    ),
    Mutation(
        "positions run on from one packed sequence to the next",
        "llm_env/lm/packed_attention.py",
        "torch.cat([torch.arange(n) for n in batch.lengths])",
        "torch.arange(sum(batch.lengths))",
        ("tests/llm_env/lm/test_packed_attention.py",),
    ),
]

PROBABILITIES = [
    Mutation(
        "the temperature is left out of log-probs",
        "llm_env/lm/log_probs.py",
        "            scaled = scaled / temperature\n",
        "            scaled = scaled / 1.0\n",
        ("tests/llm_env/lm/test_log_probs.py",),
    ),
    Mutation(
        "the temperature is left out of the reference's log-probs",
        "llm_env/reward/reference.py",
        "sequence_log_probs(lm, sequences, starts, self.temperature)",
        "sequence_log_probs(lm, sequences, starts, 1.0)",
        ("tests/test_invariants.py::test_at_learning_rate_zero_the_ratio_is_one",),
    ),
    Mutation(
        "masks are left out of log-probs",
        "llm_env/lm/log_probs.py",
        "logits = restrict(logits.float(), unpack_bits(bits, lm.vocab_size))",
        "logits = logits.float()",
        _MASK_TESTS,
    ),
    Mutation(
        "masks are worked out and not handed on",
        "llm_env/slots.py",
        "masks[busy] = rules.of(",
        "rules.of(",
        (*_MASK_TESTS, f"{LEARNING}[maskable_ppo]"),
    ),
    Mutation(
        "a response may end one token too late",
        "llm_env/masks.py",
        "< self.min_new_tokens] &= ~self.eos",
        "<= self.min_new_tokens] &= ~self.eos",
        _MASK_TESTS,
    ),
    Mutation(
        "top-p leaves out the token that reaches p",
        "llm_env/lm/sampling.py",
        "keep = before < p",
        "keep = before + ordered.softmax(-1) < p",
        _MASK_TESTS,
    ),
]

REWARDS = [
    Mutation(
        "the KL penalty is paid instead of charged",
        "llm_env/reward/formula.py",
        "rewards = -kl_coef * penalties",
        "rewards = kl_coef * penalties",
        _FORMULA_TESTS,
    ),
    Mutation(
        "k3 with the ratio upside down",
        "llm_env/reward/kl.py",
        "np.expm1(-k1) + k1",
        "np.expm1(k1) - k1",
        _FORMULA_TESTS,
    ),
    Mutation(
        "the score is paid on the first token",
        "llm_env/reward/formula.py",
        "rewards[-1] += final_score",
        "rewards[0] += final_score",
        _FORMULA_TESTS,
    ),
    Mutation(
        "a wrapper adds the policy's part of the KL with the wrong sign",
        "llm_env/wrappers.py",
        "reward - self.env.unwrapped.task.kl.coef *",
        "reward + self.env.unwrapped.task.kl.coef *",
        ("tests/llm_env/test_env.py",),
    ),
    Mutation(
        "the penalty for a missing end is dropped",
        "llm_env/task.py",
        "missing_end = 0.0 if episode.has_end else rules.missing_eos_penalty",
        "missing_end = 0.0",
        ("tests/llm_env/test_env.py",),
    ),
    Mutation(
        "a response goes on one token beyond the cap",
        "llm_env/episode.py",
        "len(self.response_ids) >= max_new_tokens",
        "len(self.response_ids) > max_new_tokens",
        ("tests/llm_env/test_episode.py",),
    ),
    Mutation(
        "observations are padded with an end token",
        "llm_env/task.py",
        "        return self.vocab_size\n",
        "        return min(self.eos_ids)\n",
        ("tests/llm_env/test_env.py",),
    ),
    Mutation(
        "the reward model does not see the end token",
        "llm_env/reward/classifier.py",
        "            return episode.ids\n",
        "            return [i for i in episode.ids if i != self.tokenizer.eos_token_id]\n",
        ("tests/llm_env/reward/test_models.py",),
    ),
    Mutation(
        "the reference is trained too",
        "llm_env/lm/registry.py",
        "        freeze(lm.model)\n",
        "",
        ("tests/test_invariants.py::test_frozen_models_are_bit_identical_after_training",),
    ),
    Mutation(
        "the exact KL has the gradient of its integrand only",
        "llm_env/lm/log_probs.py",
        "        pi = log_pi.exp()\n",
        "        pi = log_pi.exp().detach()\n",
        ("tests/agents/algorithms/test_practices.py",),
    ),
    Mutation(
        "the reference wears the policy's adapters",
        "llm_env/lm/registry.py",
        "layer._disable_adapters = True",
        "layer._disable_adapters = False",
        ("tests/agents/policies/test_actor_critic.py",),
    ),
    Mutation(
        "step scoring goes on with the reference of before a refresh",
        "llm_env/reward/reference.py",
        "if self._version != self.reference.version:",
        "if self._version > self.reference.version:",
        ("tests/agents/algorithms/test_practices.py::test_step_scoring_notices_a_refresh",),
    ),
]

TEXTS = [
    Mutation(
        "prompts are cut one token short",
        "llm_env/text/prompts.py",
        "cut = max(0, len(ids) - max_prompt_length)",
        "cut = max(0, len(ids) - max_prompt_length + 1)",
        ("tests/llm_env/text/test_prompts.py",),
    ),
    Mutation(
        "prompts are cut on the right",
        "llm_env/text/prompts.py",
        "tuple(ids[cut:])",
        "tuple(ids[: len(ids) - cut])",
        ("tests/llm_env/text/test_prompts.py",),
    ),
    Mutation(
        "the prompt's tokens are learned with the response's",
        "llm_env/text/texts.py",
        "return EncodedText([*ids, *end], len(prompt.ids))",
        "return EncodedText([*ids, *end], 1)",
        ("tests/llm_env/text/test_texts.py",),
    ),
]

ADVANTAGES = [
    Mutation(
        "advantages have the wrong sign",
        "agents/rollouts/advantages.py",
        "rewards + gamma * next_values - values, 0.0)",
        "values - rewards - gamma * next_values, 0.0)",
        (f"{LEARNING}[ppo]", f"{LEARNING}[reinforce_pp]"),
    ),
    Mutation(
        "the value of the state behind a rollout is dropped",
        "agents/rollouts/advantages.py",
        "next_values[np.arange(n), lengths - 1] = last_values",
        "next_values[np.arange(n), lengths - 1] = 0.0",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "credit does not go back from the end",
        "agents/rollouts/advantages.py",
        "delta[:, t] + gamma * gae_lambda * running",
        "delta[:, t] + 0.0 * running",
        (f"{LEARNING}[reinforce_pp]", f"{LEARNING}[grpo]"),
    ),
    Mutation(
        "a response is in its own baseline",
        "agents/rollouts/advantages.py",
        "(scores - mean) * size / (size - 1)",
        "scores - mean",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "advantages are centered and not scaled",
        "agents/rollouts/advantages.py",
        "(advantages - advantages.mean()) / (advantages.std() + 1e-8)",
        "advantages - advantages.mean()",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "the greedy response's score is not subtracted",
        "agents/rollouts/advantages.py",
        "returns_to_go(rewards, lengths, gamma) - baselines[:, None]",
        "returns_to_go(rewards, lengths, gamma)",
        _ADVANTAGE_TESTS,
    ),
    Mutation(
        "the clip range has no lower side",
        "agents/algorithms/losses.py",
        "torch.clamp(ratio, 1 - clip_low, 1 + clip_high)",
        "torch.clamp(ratio, max=1 + clip_high)",
        ("tests/agents/algorithms/test_losses.py",),
    ),
    Mutation(
        "the clipped objective is an upper bound",
        "agents/algorithms/losses.py",
        "-torch.min(",
        "-torch.max(",
        ("tests/agents/algorithms/test_losses.py",),
    ),
    Mutation(
        "beta falls where the KL is too high",
        "agents/callbacks/adaptive_kl.py",
        "kl / target - 1",
        "1 - kl / target",
        ("tests/agents/algorithms/test_practices.py::test_adaptive_kl_by_hand",),
    ),
]

FILES = [
    Mutation(
        "a half-written file stands under the whole one's name",
        "agents/files.py",
        'partial = path.with_name(f".{path.name}.partial")',
        "partial = path",
        ("tests/agents/test_files.py",),
    ),
    Mutation(
        "a half-written checkpoint is taken for a whole one",
        "agents/runs/checkpoint.py",
        'if (p / "state.json").is_file())',
        "if p.is_dir())",
        ("tests/agents/runs/test_checkpoint.py",),
    ),
    Mutation(
        "a resumed run has a fresh optimizer",
        "agents/runs/checkpoint.py",
        'optimizer.load_state_dict({"state": state,',
        'optimizer.load_state_dict({"state": {},',
        _RESUME_TESTS,
    ),
    Mutation(
        "a resumed run has other random numbers",
        "agents/runs/checkpoint.py",
        'torch.set_rng_state(tensors["cpu"])',
        "pass",
        _RESUME_TESTS,
    ),
    Mutation(
        "a resumed run asks its prompts in another order",
        "llm_env/text/prompts.py",
        'self._left = list(state["left"])',
        "self._left = []",
        ("tests/llm_env/text/test_prompts.py", *_RESUME_TESTS),
    ),
]

# What is wired together: policies, buffers, losses. Add a mutation here for each term and each mask of a new algorithm.
_TEXT_PPO = "agents/algorithms/text_ppo.py"
_TEXT_PPO_TESTS = ("tests/agents/algorithms/test_text_ppo.py", "tests/agents/algorithms/test_practices.py")
_BUFFER = "agents/rollouts/buffer.py"
_VEC_ENV_TESTS = ("tests/agents/rollouts/test_vec_env.py",)
_ORDINARY_PPO = (
    "tests/agents/algorithms/test_text_ppo.py::test_without_further_terms_an_update_is_stock_ppos_bit_for_bit"
)

WIRING = [
    Mutation(
        "an unfinished segment's next value is dropped",
        _BUFFER,
        "unfinished = [i for i, s in enumerate(self.segments) if not s.finished]",
        "unfinished: list[int] = []",
        ("tests/agents/rollouts/test_buffer.py",),
    ),
    Mutation(
        "groups of different steps share a number",
        _BUFFER,
        "group = (self._rollouts * self.buffer_size + self.pos) * self.n_envs + slot // self.group_size",
        "group = slot % self.group_size",
        ("tests/agents/algorithms/test_text_ppo.py",),
    ),
    Mutation(
        "the value loss is left out",
        _TEXT_PPO,
        "+ self.vf_coef * value_loss",
        "+ 0.0 * value_loss",
        (_ORDINARY_PPO,),
    ),
    Mutation(
        "the KL in the loss has the wrong sign",
        _TEXT_PPO,
        "surrogate + task.kl.coef * penalty",
        "surrogate - task.kl.coef * penalty",
        _TEXT_PPO_TESTS,
    ),
    Mutation(
        "the KL in the loss is left out",
        _TEXT_PPO,
        "surrogate + task.kl.coef * penalty",
        "surrogate + 0.0 * penalty",
        _TEXT_PPO_TESTS,
    ),
    Mutation(
        "the texts of PPO-ptx are unlearned",
        _TEXT_PPO,
        "loss = loss + self.mix.coef * ptx_loss",
        "loss = loss - self.mix.coef * ptx_loss",
        _TEXT_PPO_TESTS,
    ),
    Mutation(
        "the reward keeps the KL that the loss charges",
        "llm_env/task.py",
        "if not self.kl.in_reward:",
        "if False:",
        _TEXT_PPO_TESTS,
    ),
    Mutation(
        "values are clipped around themselves",
        _TEXT_PPO,
        "torch.clamp(values - data.old_values, -clip_vf, clip_vf)",
        "(values - data.old_values)",
        (_ORDINARY_PPO,),
    ),
    Mutation(
        "an update that runs out of memory loses the gradients of other terms",
        "agents/policies/micro_batches.py",
        "parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)",
        "parameter.grad = before if parameter.grad is None else parameter.grad",
        ("tests/agents/policies/test_micro_batches.py",),
    ),
    Mutation(
        "old log-probs of mixed precision are not scored again",
        "agents/rollouts/scoring.py",
        "if policy.rescores_log_probs:",
        "if False:",
        ("tests/test_invariants.py", "tests/llm_env/test_masks.py"),
    ),
    Mutation(
        "an evaluation on the training environment is paid NaN",
        "agents/rollouts/vec_env.py",
        'return self.scoring == "deferred" and self.collecting and not self._wrapped',
        'return self.scoring == "deferred"',
        _VEC_ENV_TESTS,
    ),
    Mutation(
        "a wrapper's rewards are NaN",
        "agents/rollouts/vec_env.py",
        "self._wrapped = bool(readers)",
        "self._wrapped = False",
        _VEC_ENV_TESTS,
    ),
    Mutation(
        "log-probs are lost in a pipe",
        "agents/policies/sampled_actions.py",
        "return (SampledAction.carry, (int(self), self.log_prob, self.temperature))",
        "return (np.int64, (int(self),))",
        _VEC_ENV_TESTS,
    ),
    Mutation(
        "masks from an older actor are never refreshed",
        "agents/callbacks/mask_refresh.py",
        "if self.rollouts and self.rollouts % self.every == 0:",
        "if False:",
        _MASK_TESTS,
    ),
    Mutation(
        "a critic that is not the actor's moves the actor",
        "agents/policies/critic.py",
        "return hidden.detach() if self.detach else hidden",
        "return hidden",
        ("tests/agents/policies/test_actor_critic.py",),
    ),
]

MUTATIONS = [*DECODING, *PROBABILITIES, *REWARDS, *TEXTS, *ADVANTAGES, *FILES, *WIRING]


class LostTextError(LookupError):
    """A mutation's text does not stand in its file, or more than once."""


def broken(mutation: Mutation, source: str) -> str:
    """The source with the mistake in it.

    Raises:
        LostTextError: the text is not there once.
    """
    count = source.count(mutation.text)
    if count != 1:
        raise LostTextError(f"{mutation.file} has {mutation.text!r} {count} times, and should once")
    return source.replace(mutation.text, mutation.broken)


def failing_test(mutation: Mutation, folder: Path, tier: str) -> tuple[str | None, str]:
    """Breaks the copy in `folder`, runs the tests, and mends it.

    Returns:
        The test that failed, or None; and what to print: "caught by …", "MISSED", or "ERROR: …".
    """
    for name in (mutation.file, *(test.partition("::")[0] for test in mutation.tests)):
        if not (folder / name).is_file():
            return None, f"ERROR: there is no {name}"
    path = folder / mutation.file
    source = path.read_text(encoding="utf-8")
    try:
        path.write_text(broken(mutation, source), encoding="utf-8")
        done = run_tests(folder, mutation.tests, tier)
    except LostTextError as error:
        return None, f"ERROR: {error}"
    finally:
        path.write_text(source, encoding="utf-8")
    if done.returncode == 0:
        return None, "MISSED"
    failed = re.search(r"^FAILED (\S+::.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != FAILED or failed is None:
        return None, f"ERROR: pytest ended with status {done.returncode}: {' '.join(done.stdout.split())[-300:]}"
    return failed[1], f"caught by {failed[1].removeprefix('tests/')}"


def run_tests(folder: Path, tests: tuple[str, ...], tier: str) -> subprocess.CompletedProcess[str]:
    """Runs tests in the copy up to the first that fails."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),  # before an editable installation of the working tree
        "PYTHONDONTWRITEBYTECODE": "1",  # a broken file and the mended one can have the same time and size
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    command += ["-m", "not slow"] if tier == "fast" else []
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def copy_repository(folder: Path) -> None:
    """Copies what tests need; neither caches nor environments."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy2(source, folder / name)


def main(argv: list[str]) -> int:
    """Runs the mutations asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=("fast", "all"), default="fast", help="which of the named tests are run")
    parser.add_argument("--only", default="", help="only mutations with this in their name or file")
    parser.add_argument("--list", action="store_true", help="name them, and run nothing")
    args = parser.parse_args(argv)
    chosen = [m for m in MUTATIONS if args.only in m.name or args.only in m.file]
    if args.list:
        print("\n".join(f"{m.name} ({m.file})" for m in chosen))
        return 0
    caught: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        copy_repository(Path(name))
        for mutation in chosen:
            start = time.perf_counter()
            test, result = failing_test(mutation, Path(name), args.tier)
            caught += [test] if test is not None else []
            print(f"{mutation.name:<62} {result} ({time.perf_counter() - start:.0f} s)", flush=True)
        # a test that fails on the code as it is has caught nothing
        mended = run_tests(Path(name), tuple(dict.fromkeys(caught)), args.tier) if caught else None
    if mended is not None and mended.returncode != 0:
        print("ERROR: of these tests, some fail on the code as it is:", mended.stdout, sep="\n")
        return 1
    print(f"{len(caught)} of {len(chosen)} mutations caught by the {args.tier} tests")
    return int(len(caught) < len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
