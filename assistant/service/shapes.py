"""What requests and answers look like as JSON.

Ids are texts in every answer: they have 64 bits, of which a number in JavaScript keeps 53. In requests both are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from assistant.events import Candidates, Event, pin_data
from assistant.service.guard import Keys
from assistant.turns import Candidate, Message, Request

Id = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Field(ge=1, le=100)]
Tag = Annotated[str, Field(min_length=1, max_length=200)]
ID_FIELDS = frozenset({"pin_id", "board_id", "user_id", "medoid_pin"})


class Said(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    text: str


class ChatRequest(BaseModel):
    """A turn: the conversation so far, and what it is about. `shown`: pins that the answer before named, by number."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Said]
    shown: list[Id] = []
    pin_id: Id | None = None
    user_id: Id | None = None
    board: Id | None = None
    tag: Tag | None = None
    mode: Literal["auto", "quick", "thinking"] = "auto"

    def turn(self, picture: bytes | None) -> Request:
        """As the Navigator takes it."""
        messages = tuple(Message(said.role, said.text) for said in self.messages)
        return Request(messages, picture, self.pin_id, self.user_id, self.board, self.tag, tuple(self.shown))


class SearchRequest(BaseModel):
    """A search by words, by a pin or by the picture that comes with it: by one of them."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    pin: Id | None = None
    tag: Tag | None = None
    board: Id | None = None
    k: Count = 20


def with_texts_for_ids(data: Any) -> Any:
    """The same JSON, its ids texts."""
    if isinstance(data, Mapping):
        told = {name: str(v) if name in ID_FIELDS and v is not None else with_texts_for_ids(v) for name, v in data.items()}
        return told | ({"cited": [str(pin) for pin in told["cited"]]} if "cited" in told else {})
    if isinstance(data, list | tuple):
        return [with_texts_for_ids(item) for item in data]
    return data


def pins_json(pins: Sequence[Candidate], keys: Keys) -> list[Any]:
    """Pins as a page shows them, each with its picture's path, which is null for one without a picture."""
    return [with_texts_for_ids(pin_data(pin)) | {"picture": picture_path(pin.pin_id, pin.image_uri, keys)} for pin in pins]


def event_json(event: Event, keys: Keys) -> Any:
    told = with_texts_for_ids(event.data())
    return told | {"pins": pins_json(event.pins, keys)} if isinstance(event, Candidates) else told


def picture_path(pin_id: int, image_uri: str | None, keys: Keys) -> str | None:
    if not image_uri:
        return None
    key = keys.picture_key(pin_id)
    return f"/pins/{pin_id}/picture" + (f"?key={quote(key)}" if key else "")
