"""Which brain a service has, by its name on the command line."""

from __future__ import annotations

from assistant.service.serving import MakeBrain
from assistant.service.settings import ServiceError
from assistant.turns import Brain, BrainError
from embedding.index.reader import Release
from embedding.tables.lake import Lake

BRAINS = ("core", "context")


def make_brain(name: str) -> MakeBrain:
    """core: our own language model, over pins' projected embeddings. context: the endpoint that the environment names."""
    if name == "core":
        return _core
    if name == "context":
        return _context
    raise ServiceError(f"there is no brain {name!r}: {' or '.join(BRAINS)}")


def _core(_: Lake, release: Release) -> Brain:
    from assistant.brains.configured import core_brain  # here: seconds of imports that the other brain has no use for

    return core_brain(release.manifest.embedding_version)


def _context(*_: object) -> Brain:
    from assistant.brains.endpoint import EndpointBrain
    from assistant.brains.endpoint_config import URL_VARIABLE, EndpointConfig

    config = EndpointConfig.from_environment()
    if config is None:
        raise BrainError(f"no endpoint is named: set {URL_VARIABLE}")
    return EndpointBrain(config)
