"""Mistakes in what watches over the numbers of a run and keeps its log."""

from __future__ import annotations

from tests.mistakes import Mutation

_ALARMS = "agents/callbacks/alarms.py"
_ALARM_TESTS = ("tests/agents/callbacks/test_alarms.py",)
_CSV = "agents/runs/csv_log.py"
_CSV_TESTS = ("tests/agents/runs/test_csv_log.py",)
_RUN_TESTS = ("tests/agents/runs/test_faults.py",)

FAULTS = [
    Mutation(
        "a gradient that is NaN is let through", _ALARMS, "if not math.isfinite(norm):", "if False:", _ALARM_TESTS
    ),
    Mutation(
        "weights that are NaN are saved",
        _ALARMS,
        "if ranks().any(not is_finite):",
        "if False:",
        _ALARM_TESTS,
    ),
    Mutation(
        "rewards that are infinite are learned from",
        _ALARMS,
        "if array is not None and not np.isfinite(array).all():",
        "if False:",
        _ALARM_TESTS,
    ),
    Mutation(
        "the last gradient of an iteration is never read",
        _ALARMS,
        "        self._read_norms()\n        is_finite",
        "        is_finite",
        _ALARM_TESTS,
    ),
    Mutation(
        "of a loss with two terms one gradient is looked at",
        "agents/policies/micro_batches.py",
        "                    ranks().tell(parameter)",
        "                    pass",
        _ALARM_TESTS,
    ),
    Mutation(
        "a spike becomes what is usual",
        _ALARMS,
        "            else:\n                self.norms.append(norm)",
        "            self.norms.append(norm)",
        _ALARM_TESTS,
    ),
    Mutation("an alarm is said each time", _ALARMS, "if kind not in self.said:", "if True:", _ALARM_TESTS),
    Mutation("a KL that grows with the score is an alarm", _ALARMS, " and score < usual_score:", ":", _ALARM_TESTS),
    Mutation(
        "faults are looked for after the checkpoint",
        "agents/runs/run.py",
        "callbacks: list[BaseCallback] = [self.alarms, self.callback]",
        "callbacks: list[BaseCallback] = [self.callback]",
        _RUN_TESTS,
    ),
    Mutation(
        "a single rollout is trained on at rate 0",
        "agents/runs/learning_rate.py",
        "model._setup_lr_schedule()",
        "pass",
        _RUN_TESTS,
    ),
    Mutation(
        "logits that are NaN are sampled from",
        "llm_env/slots.py",
        "            check_log_probs(log_probs[busy])\n",
        "",
        ("tests/llm_env/test_nan.py",),
    ),
    Mutation(
        "a supervised stage goes on from NaN",
        "agents/supervised/trainer.py",
        "    trainer.add_callback(StopAtFaults())\n",
        "",
        ("tests/agents/supervised/test_faults.py",),
    ),
    Mutation(
        "half a row of the log is kept",
        _CSV,
        'data.split(b"\\n")[:-1]',
        'data.split(b"\\n")',
        _CSV_TESTS,
    ),
    Mutation(
        "the log is written anew for each row",
        _CSV,
        "        if new or not self.path.is_file():\n",
        "        if True:\n",
        _CSV_TESTS,
    ),
    Mutation("the rows behind a checkpoint stay", _CSV, "[STEP]) <= timestep]", "[STEP]) < 1e18]", _CSV_TESTS),
]
