"""The encoder room: from an image's address and a pin's text to one vector.

The modules, in the order in which a pin passes them:

- `limits`  what is accepted, and the error that a refused image raises
- `fetch`   address -> bytes
- `images`  bytes -> RGB picture
- `config`  which model, with which weights, and its `EmbeddingVersion`
- `model`   pictures and texts -> vectors
- `stream`  all of it over an endless iterator of pins, with bounded memory

- `store`   the encoders of a lake, and which of them is live

How an encoder comes to be: `training_set` (with `pictures` and `bags`) -> `examples` -> `sources`, `losses`, `warm_start`,
`train` by a `recipe` -> `judge` -> `tracking`. Only `model`, `fusion`, `stream` and what trains need torch, and this file
imports none of them.
"""
