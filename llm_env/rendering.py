"""Pictures of a response: each token colored by its KL, as terminal text or as an image."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm_env.extras import require
from llm_env.reward.kl import kl_k1
from llm_env.text.printable import printable

if TYPE_CHECKING:
    from llm_env.episode import Episode
    from llm_env.task import TextTask

Piece: TypeAlias = tuple[str, float | None]
"""A text and the KL of the token that it is, in nats; None for what a world said, which is drawn as the prompt is."""
ABOVE, BELOW = (230, 120, 0), (30, 110, 220)
"""RGB of what stands above 0 and below, wherever tokens are colored: orange and blue, which nearly all people tell apart."""
END = "■"
"""Stands for an end token."""
FULL_COLOR = 4.0  # nats at which the color is strongest
WIDTH, FONT_SIZE, MARGIN, LINE_CHARS = 720, 16, 16, 70


def token_kl(episode: Episode) -> NDArray[np.float64]:
    """Log π - log π_ref of each response token, in nats, shape (n,); where log π is unknown, with log π = 0: -log π_ref."""
    reference = np.asarray(episode.ref_log_probs, dtype=np.float64)
    n = len(reference)
    policy = episode.log_probs[:n] if len(episode.log_probs) >= n else np.zeros(n)
    return kl_k1(policy, reference)


def color_of(number: float, full: float = FULL_COLOR) -> tuple[int, int, int]:
    """RGB color of a token's KL or value on a white ground: white at 0, orange above, blue below.

    Args:
        number: The KL in nats (above 0 the policy likes the token more than the reference), or another number.
        full: Where the color is strongest.
    """
    strength = 0.75 * min(abs(number) / full, 1.0)  # a quarter of the ground stays, so that black text can be read
    red, green, blue = (round(255 + strength * (part - 255)) for part in (ABOVE if number >= 0 else BELOW))
    return red, green, blue


def pieces(task: TextTask, episode: Episode) -> list[Piece]:
    """The response as (text, KL) of each token, and what a world said as a text with None for its KL."""
    kls = token_kl(episode)
    replies = {turn.end: task.decode(turn.reply_ids) for turn in episode.turns}
    result: list[Piece] = []
    start = 0
    for end in sorted({*replies, len(episode.response_ids)}):  # turn by turn
        texts = token_texts(episode.response_ids[start:end], task.eos_ids, task.decode)
        # Tokens that are not scored yet are white.
        result += [(text, float(kls[i]) if i < len(kls) else 0.0) for i, text in enumerate(texts, start)]
        if end in replies:
            result.append((replies[end], None))
        start = end
    return result


def token_texts(ids: Sequence[int], ends: Collection[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """What each token adds to the text before it; a character of several tokens stands with its last one.

    Args:
        ids: A response, or one turn of it.
        ends: End tokens, for which `END` stands.
        decode: From token ids to their text.
    """
    texts: list[str] = []
    before = ""
    for i, token in enumerate(ids):
        if token in ends:
            texts.append(END)
            continue
        now = decode(ids[: i + 1])
        if now.endswith("\ufffd") and i + 1 < len(ids) and ids[i + 1] not in ends:
            texts.append("")  # the character goes on
            continue
        texts.append(now[len(before) :])
        before = now
    return texts


def render_episode(task: TextTask, episode: Episode | None, mode: str) -> str | NDArray[np.uint8]:
    """Draws an episode in a render mode, ``"ansi"`` or ``"rgb_array"``."""
    prompt = "" if episode is None else episode.prompt.text
    parts = [] if episode is None else pieces(task, episode)
    score = None if episode is None else episode.rm_score
    return _ansi(prompt, parts, score) if mode == "ansi" else _image(prompt, parts, score)


def _footer(parts: list[Piece], score: float | None) -> str:
    kls = [kl for _, kl in parts if kl is not None]
    scored = "" if score is None else f"score {score:.2f}   "
    return f"{scored}KL {sum(kls):.2f} nats   {len(kls)} tokens"


def _ansi(prompt: str, parts: list[Piece], score: float | None) -> str:
    painted = []
    for text, kl in parts:
        if kl is None:
            painted.append(printable(text))
            continue
        red, green, blue = color_of(kl)
        # Black on a 24-bit background color, then back to the terminal's own.
        painted.append(f"\x1b[30;48;2;{red};{green};{blue}m{printable(text)}\x1b[0m")
    return f"{printable(prompt)}{''.join(painted)}\n\x1b[2m{_footer(parts, score)}\x1b[0m\n"


def _image(prompt: str, parts: list[Piece], score: float | None) -> NDArray[np.uint8]:
    require("PIL", "plots")
    require("matplotlib", "plots")
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSansMono.ttf", FONT_SIZE)
    step, height = font.getlength("M"), round(FONT_SIZE * 1.5)  # pixels per character and per line
    lines = textwrap.wrap(prompt, LINE_CHARS) or [""]
    # Lay the response out, token by token, breaking where a line is full.
    cells: list[tuple[int, int, str, float | None]] = []
    row, column = len(lines), 0
    for text, kl in parts:
        # A token fits in a line; what a world said need not.
        rows = text.split("\n") if kl is not None else [w for r in text.split("\n") for w in _wrapped(r)]
        for line_number, shown in enumerate(rows):
            if line_number or column + len(shown) > LINE_CHARS:
                # A new line; the space before a word is dropped there, unless the token is nothing else.
                row, column, shown = row + 1, 0, shown.lstrip() or shown
            cells.append((row, column, shown, kl))
            column += len(shown)
    # Draw the prompt in gray, the tokens on their colors, and one empty line below them the footer.
    image = Image.new("RGB", (WIDTH, 2 * MARGIN + (row + 3) * height), "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * height), line, fill=(90, 90, 90), font=font)
    for row_number, column, shown, kl in cells:
        left, top = MARGIN + column * step, MARGIN + row_number * height
        if kl is not None:
            draw.rectangle((left, top, left + len(shown) * step, top + height - 4), fill=color_of(kl))
        draw.text((left, top), shown, fill="black" if kl is not None else (90, 90, 90), font=font)
    draw.text((MARGIN, MARGIN + (row + 2) * height), _footer(parts, score), fill=(90, 90, 90), font=font)
    return np.asarray(image, dtype=np.uint8)


def _wrapped(line: str) -> list[str]:
    """A line as lines that are drawn; an empty one stays."""
    return textwrap.wrap(line, LINE_CHARS) or [""]
