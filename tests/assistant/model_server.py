"""A real endpoint of OpenAI's kind on this machine: transformers' own server, in a process of its own, with small models.

It loads a model when it is first asked for it, by its folder. SmolLM2 is the one of its package; the toy Qwen3-VL, of random
weights, reads pictures, and fetches them by their address.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from assistant.brains import smollm2
from assistant.brains.endpoint_config import EndpointConfig
from tests.assistant.toy_models import toy_qwen3_vl, toy_tokenizer

PATIENCE_S = 120.0

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def smollm2_folder(folder: Path) -> Path:
    """SmolLM2 as transformers' server wants it: with the name of its architecture."""
    model, tokenizer = smollm2.load()
    folder.mkdir(parents=True)
    (unpacked,) = smollm2.cache_folder().glob("smollm2-*/model.safetensors")
    (folder / "model.safetensors").symlink_to(unpacked)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}))
    return folder


def toy_qwen3_vl_folder(folder: Path) -> Path:
    """A Qwen3-VL of random weights with its processor."""
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = toy_tokenizer()
    toy_qwen3_vl(tokenizer).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")  # type: ignore[no-untyped-call]
    size = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    pictures = Qwen2VLImageProcessor(patch_size=16, merge_size=2, temporal_patch_size=2, size=size)
    Qwen3VLProcessor(pictures, fast, Qwen3VLVideoProcessor(), chat_template=_TEMPLATE).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@contextmanager
def model_server(log: Path) -> Iterator[str]:
    """The address of a server that has started."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=out, stderr=out, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    try:
        waited = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > waited:
                    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}") from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def patient(url: str, model: Path, **more: Any) -> EndpointConfig:
    """For a server that loads its model at the first request, on a slow machine."""
    return EndpointConfig(url, str(model), **{"silence_timeout_s": PATIENCE_S, "total_timeout_s": PATIENCE_S, **more})


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, *args: Any, status: int, body: bytes, kind: str, seen: list[str], held_s: float):
        self._status, self._body, self._kind, self._seen, self._held_s = status, body, kind, seen, held_s
        super().__init__(*args)

    def _answer(self) -> None:
        self._seen.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(self._held_s)
        self.send_response(self._status)
        self.send_header("Content-Type", self._kind)
        self.send_header("Content-Length", str(len(self._body)))
        self.end_headers()
        self.wfile.write(self._body)

    do_GET = do_POST = _answer  # noqa: N815 - as the library names them

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def web(body: bytes, kind: str, status: int = 200, held_s: float = 0.0) -> Iterator[tuple[str, list[str]]]:
    """A web server that gives one answer to everything: its address, and the paths that it was asked for."""
    seen: list[str] = []
    handler = partial(_Handler, status=status, body=body, kind=kind, seen=seen, held_s=held_s)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
