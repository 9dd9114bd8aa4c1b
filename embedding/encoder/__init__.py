"""The encoder room: from an image's address and a pin's text to one vector.

The modules, in the order in which a pin passes them:

- `limits`  what is accepted, and the error that a refused image raises
- `fetch`   address -> bytes
- `images`  bytes -> RGB picture
- `config`  which model, with which weights, and its `EmbeddingVersion`
- `model`   pictures and texts -> vectors
- `stream`  all of it over an endless iterator of pins, with bounded memory

`train_projections` makes the weights of the embedded default. Only `model`, `stream` and the trainer need torch, and this
file imports none of them.
"""
