"""Single words as pins without a picture: what the encoder makes of words that the language model has a token for.

A lake's titles hold a few thousand words, and held-out pins are called by others. The language model knows twenty thousand
by one token each, and the encoder reads any text: so the projector learns which vector means which word before it has seen a
pin of that name. Captioning from texts alone does the same (CapDec, arXiv 2211.00575).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
from tokenizers import Tokenizer

from assistant.training.conversations import CONVERSATIONS, WORD
from embedding.encoder.model import PinEncoder
from embedding.encoder.store import worker_encoder
from embedding.encoder.training_set import TRAIN
from embedding.tables.lake import Lake

WORDS = pa.schema([("number", pa.int64()), ("word", pa.string())])
SHORTEST = 3
WORDS_A_PASS = 512


def known_words(tokenizer: Tokenizer) -> list[str]:
    """Lower-case words of ASCII letters that are one token after a space, in order. For byte-level BPE, as SmolLM2 has it."""
    spelled = (token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ"))
    return sorted(word for word in spelled if len(word) >= SHORTEST and word.isascii() and word.isalpha() and word.islower())


def encode_words(batches: Iterable[pa.RecordBatch], lake: Lake, version: str) -> Iterator[pa.RecordBatch]:
    """From WORDS to CONVERSATIONS: a word's vector, and the word as what it is called."""
    encoder = None
    for batch in batches:
        encoder = encoder or PinEncoder.load(worker_encoder(lake, version), threads=1)
        numbers, words = batch.column("number").to_pylist(), batch.column("word").to_pylist()
        rows = [
            {
                "split": TRAIN,
                "stage": 1,
                "kind": WORD,
                "about": -1 - number,
                "alone": False,
                "pins": [{"pin_id": -1 - number, "vector": vector.tobytes(), "title": ""}],
                "words": "",
                "choices": [word],
                "right": 0,
                "place": number,
            }
            for number, word, vector in zip(numbers, words, encoder.encode_texts(words), strict=True)
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=CONVERSATIONS)
