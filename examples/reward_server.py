"""A reward server to copy: standard library, one function or one classifier, for docs/reward_server.md.

    python examples/reward_server.py --function my_reward:score
    python examples/reward_server.py --classifier my_reward_model_folder --port 8000
    python scripts/train.py --reward-model http://127.0.0.1:8000/ --output-dir runs/mine

It listens on this machine alone. For others give --host, and a key in REWARD_SERVER_KEY, which clients must then send.
"""

from __future__ import annotations

import argparse
import hmac
import importlib
import inspect
import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Score = Callable[..., list[float]]
"""Takes prompts and responses, and by name the columns that it wants; gives a score for each response."""
MOST_BYTES = 100_000_000
"""Size of the largest request that is read."""


def function(name: str) -> Score:
    """The function of the name ``package.module:function``, from the current folder or an installed package."""
    sys.path.append(os.getcwd())
    module, _, attribute = name.partition(":")
    wanted = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(wanted).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def score(prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        return wanted(prompts, responses, **{n: c for n, c in columns.items() if takes_all or n in parameters})

    return score


def classifier(name: str) -> Score:
    """The logit that a sequence classifier with one label gives to prompt and response, one after the other."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, use_safetensors=True).eval()

    @torch.inference_mode()
    def score(prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        return [model(**tokenizer(text, return_tensors="pt", truncation=True)).logits[0, 0].item() for text in texts]

    return score


def answer_to(request: bytes, score: Score) -> tuple[int, dict[str, Any]]:
    """The status and the body of the answer to a request's body."""
    try:
        values = json.loads(request)
        prompts, responses = (
            values.pop("prompts"),
            values.pop("responses"),
        )  # the rest are columns of the prompts' records
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 400, {"error": 'expected JSON: {"prompts": [...], "responses": [...]}'}
    try:
        scores = [float(s) for s in score(prompts, responses, **values)]
        if len(scores) != len(responses):
            raise ValueError(f"{len(scores)} scores for {len(responses)} responses")
    except Exception as error:
        # 422 and not 500: the same request would fail again, so the client should stop and not wait.
        return 422, {"error": f"{type(error).__name__}: {error}"}
    return 200, {"scores": scores}


def handler(score: Score, key: str) -> type[BaseHTTPRequestHandler]:
    """The class that answers requests; one at a time is scored."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # seconds that a client may be silent for

        def do_POST(self) -> None:
            sent = self.headers.get("Authorization", "")
            length = self.headers.get("Content-Length", "")
            if key and not hmac.compare_digest(sent.encode(), f"Bearer {key}".encode()):
                self.answer(401, {"error": "wrong key"})
            elif not length.isdigit() or int(length) > MOST_BYTES:
                self.answer(413, {"error": f"Content-Length must be at most {MOST_BYTES}"})
            else:
                request = self.rfile.read(int(length))
                with one_at_a_time:
                    result = answer_to(request, score)
                self.answer(*result)

        def answer(self, status: int, values: dict[str, Any]) -> None:
            body = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--function", help="package.module:function of (prompts, responses), and of columns")
    what.add_argument("--classifier", help="folder or hub id of a classifier with one label")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    try:
        score = function(args.function) if args.function else classifier(args.classifier)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        parser.error(f"{args.function or args.classifier}: {str(error).strip().splitlines()[0]}")
    server = ThreadingHTTPServer((args.host, args.port), handler(score, os.environ.get("REWARD_SERVER_KEY", "")))
    print(f"scores at http://{args.host}:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
