"""Names of weights in files of other projects, turned into the names that open_clip's towers have.

Tensors are only renamed or left out, never changed. Which file has which layout is said in the encoder's config.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# EfficientNet-Lite0: how many blocks each of its seven stages has.
_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
_LITE0_BLOCKS = tuple((stage, block) for stage, count in enumerate(_LITE0_STAGES) for block in range(count))
_LITE0_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE0_OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _open_clip(name: str) -> str | None:
    """open_clip's own names. Checkpoints of its distributed training put `module.` before each."""
    return name.removeprefix("module.")


def _efficientnet_lite0(name: str) -> str | None:
    """efficientnet-lite-pytorch to timm's tf_efficientnet_lite0, without the classifier.

    The `tf_` variant is the one with the same padding: there the two give equal outputs, and otherwise they do not.
    """
    if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        stage, block = _LITE0_BLOCKS[int(match[1])]
        parts = _LITE0_FIRST if stage == 0 else _LITE0_OTHER
        return f"blocks.{stage}.{block}.{parts[match[2]]}.{match[3]}"
    part, _, rest = name.partition(".")
    return None if part == "_fc" else f"{_LITE0_OUTSIDE[part]}.{rest}"


def _bert(name: str) -> str | None:
    """A Hugging Face BertModel, whose pooler and list of positions open_clip's text tower does not have."""
    return None if name.startswith("pooler.") or name.endswith("position_ids") else name.removeprefix("bert.")


LAYOUT_NAMES: dict[str, Callable[[str], str | None]] = {
    "open_clip": _open_clip,
    "efficientnet_lite0": _efficientnet_lite0,
    "bert": _bert,
}
"""By layout: a tensor's name in the file -> its name in the tower, None where left out. LookupError: not of the layout."""
