"""How likely a language model finds continuations of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from assistant.brains.decoder import Decoder, read
from assistant.brains.prompts import Prompt
from embedding.index.recall import Floats

AT_ONCE = 16


def score(decoder: Decoder, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> Floats:
    """Sums of natural log-probabilities of the continuations' tokens, (number of continuations,). The prompt is read once."""
    hidden, past = read(decoder, [decoder.embed(prompt)])
    first_V = torch.log_softmax(decoder.logits(hidden[0, -1]), -1)
    found: list[float] = []
    for start in range(0, len(continuations), AT_ONCE):
        some = [torch.tensor(ids, device=decoder.device) for ids in continuations[start : start + AT_ONCE]]
        sums = torch.stack([first_V[ids[0]] for ids in some])
        if max(map(len, some)) > 1:
            # Of each all but the last token is read: what follows the last is not asked.
            hidden, _ = read(decoder, [nn.functional.embedding(ids[:-1], decoder.weight) for ids in some], past)
            for number, ids in enumerate(some):
                said = torch.log_softmax(decoder.logits(hidden[number, : len(ids) - 1]), -1)
                sums[number] += said.gather(-1, ids[1:, None]).sum()
        found += sums.tolist()
    return np.array(found, np.float32)
